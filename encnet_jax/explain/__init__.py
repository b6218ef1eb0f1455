"""What the context does in an image: `Segmenter.explain` and its figure."""
