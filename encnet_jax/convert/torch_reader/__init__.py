"""Reads PyTorch files to NumPy arrays, without PyTorch and without executing code."""
