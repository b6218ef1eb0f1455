"""TFDS builders, one module per data set."""
