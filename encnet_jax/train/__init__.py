"""Training: the loop, the step, and what they start from."""

from encnet_jax.train.trainer import train

__all__ = ["train"]
