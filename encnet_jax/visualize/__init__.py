"""Label maps and scores as images and charts."""
