"""Data sets, augmentation, and the way to the devices."""
