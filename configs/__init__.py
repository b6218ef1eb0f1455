"""The recipes, one file each; installed as `encnet_jax.configs`.

`--config=NAME` and `--config=NAME:ARG` find them by name.
"""
