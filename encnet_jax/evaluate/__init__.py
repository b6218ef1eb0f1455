"""A trained model scored on a split."""
