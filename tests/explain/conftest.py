"""A small network that knows scenes, and one of random weights without the branches."""

import pytest

from encnet_jax import Segmenter
from tests.make_scenes_model import FOLDER


@pytest.fixture(scope="session")
def scenes():
    """The network of `tests/make_scenes_model.py`."""
    return Segmenter.from_pretrained(FOLDER)
