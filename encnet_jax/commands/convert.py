"""Converts PyTorch weights: encnet convert FILE --output=DIR.

Writes a workdir for `encnet evaluate`, `encnet predict` and `encnet export`.
"""

from absl import flags

from encnet_jax import cli
from encnet_jax.convert.workdir import write_workdir
from encnet_jax.errors import UserError


def define_flags() -> None:
    """Defines the flags of the verb."""
    flags.DEFINE_string("output", None, "Folder for the workdir.", required=True)
    flags.DEFINE_string(
        "classes",
        "",
        "Class names: a,b,c, or a file with one per line, or FILE.json with a list.",
    )
    flags.DEFINE_string(
        "dataset", "", "Data set that defines the class names and colors."
    )
    flags.DEFINE_string(
        "prefix", "", "Prefix of the network's keys, where the file holds others too."
    )
    flags.FLAGS.set_gnu_getopt(True)  # allow flags after the file


def main(arguments: list[str]) -> None:
    """Runs the command."""
    if len(arguments) != 1:
        raise UserError(f"{len(arguments)} files: one weight file is needed")
    values = flags.FLAGS
    print(
        write_workdir(
            arguments[0],
            cli.flag_path("output", values.output),
            classes=values.classes,
            dataset=values.dataset,
            prefix=values.prefix,
        )
    )
