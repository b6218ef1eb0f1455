"""Import of PyTorch weights, without PyTorch."""
