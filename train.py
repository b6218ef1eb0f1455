"""`python train.py` is `encnet train`: see encnet_jax/commands/train.py."""

from encnet_jax.commands import run

if __name__ == "__main__":
    run("train")
