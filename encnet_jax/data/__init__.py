"""Data sets, augmentation, and batches on the devices."""
