"""Label maps as images, scores as charts."""
