"""Every key of the configuration has a test that it reaches what it sets."""

from encnet_jax.config import default
from tests.settings.keys import marked_keys

# Keys whose tests are still to be marked `sets("KEY")`, here or in a file of
# `keys.ELSEWHERE`.
MISSING: set[str] = set()


def leaves(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_key_has_a_test():
    assert marked_keys() | MISSING == set(leaves(default()))
