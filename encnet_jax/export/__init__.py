"""Trained models as StableHLO or ONNX files."""
