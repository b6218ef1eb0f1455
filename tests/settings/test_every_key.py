"""Every key of the configuration has a test that it reaches what it sets.

A new key fails here until a test is marked `sets("GROUP.KEY")`: in a file
`tests/settings/test_*_settings.py`, or in one that `keys.ELSEWHERE` names.
"""

from encnet_jax.config import default
from tests.settings.keys import marked_keys


def leaves(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_key_has_a_test():
    assert marked_keys() == set(leaves(default()))
