"""`python evaluate.py` is `encnet evaluate`: see encnet_jax/commands/evaluate.py."""

from encnet_jax.commands import run

if __name__ == "__main__":
    run("evaluate")
