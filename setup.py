"""Which folders are packages; everything else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["encnet_jax*"]), "encnet_jax.configs"],
    # The recipes are beside the package in a clone, and inside of it in a wheel.
    package_dir={"encnet_jax.configs": "configs"},
)
