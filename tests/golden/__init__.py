"""Tests against numbers computed by the original implementations of EncNet."""
