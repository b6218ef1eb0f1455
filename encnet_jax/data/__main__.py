"""`python -m encnet_jax.data` is `encnet data`."""

from encnet_jax.commands import run

if __name__ == "__main__":
    run("data")
