"""`encnet predict` of the small network in this process."""

import functools

import pytest

from encnet_jax.commands import predict
from tests.make_scenes_model import FOLDER
from tests.parsed_flags import run_command


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Returns a function that runs the command; see `run_command`."""
    return functools.partial(
        run_command, monkeypatch, predict, workdir=FOLDER, output=tmp_path / "out"
    )
