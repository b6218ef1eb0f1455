"""Commands in this process, with flags parsed as on the command line."""

import functools

from absl import flags


class _Flags:
    """absl's `flags` with values of its own."""

    def __init__(self):
        self.FLAGS = flags.FlagValues()

    def __getattr__(self, name):
        return functools.partial(getattr(flags, name), flag_values=self.FLAGS)


def run_command(monkeypatch, command, *arguments, **given):
    """Runs a module of `encnet_jax.commands`; returns its exit code.

    Args:
        monkeypatch: Replaces the flags of the command.
        command: The module.
        *arguments: What follows the flags.
        **given: The flags; a list repeats one, True is one without a value.
    """
    own = _Flags()
    monkeypatch.setattr(command, "flags", own)
    command.define_flags()
    line = [command.__name__]
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        line += [f"--{name}" if v is True else f"--{name}={v}" for v in values]
    return command.main(own.FLAGS([*line, *map(str, arguments)])[1:])
