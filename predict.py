"""`python predict.py` is `encnet predict`: see encnet_jax/commands/predict.py."""

from encnet_jax.commands import run

if __name__ == "__main__":
    run("predict")
