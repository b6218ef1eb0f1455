"""`python export.py` is `encnet export`: see encnet_jax/commands/export.py."""

from encnet_jax.commands import run

if __name__ == "__main__":
    run("export")
