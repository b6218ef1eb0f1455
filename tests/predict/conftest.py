"""`encnet predict` in this process, with flags parsed as on the command line."""

import functools

import pytest
from absl import flags

from encnet_jax.commands import predict
from tests.make_scenes_model import FOLDER


class _Flags:
    """absl's `flags` with values of its own."""

    def __init__(self):
        self.FLAGS = flags.FlagValues()

    def __getattr__(self, name):
        return functools.partial(getattr(flags, name), flag_values=self.FLAGS)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Returns a function that runs the command; True is a flag without a value."""

    def run(*arguments, **given):
        own = _Flags()
        monkeypatch.setattr(predict, "flags", own)
        predict.define_flags()
        given = {"workdir": FOLDER, "output": tmp_path / "out", **given}
        line = ["predict"]
        for name, value in given.items():
            values = value if isinstance(value, list) else [value]
            line += [f"--{name}" if v is True else f"--{name}={v}" for v in values]
        positional = own.FLAGS([*line, *map(str, arguments)])[1:]
        return predict.main(positional)

    return run
