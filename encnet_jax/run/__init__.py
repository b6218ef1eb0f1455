"""Runs: start, state, files on disk, and agreement among hosts."""
