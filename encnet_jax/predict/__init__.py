"""Trained models as functions of one image."""
