"""`python -m encnet_jax.convert` is `encnet convert`."""

from encnet_jax.commands import run

if __name__ == "__main__":
    run("convert")
