"""Trained models as functions of an image."""
