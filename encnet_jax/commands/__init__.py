"""The verbs of the command `encnet`, one module each.

A module documents its verb in its docstring, which `encnet VERB --help` prints, and has
`define_flags()` and `main(arguments)`. Flags are defined in a function because verbs
share names of flags: importing two of them must not define one twice.
"""

import importlib
import sys

from absl import flags

from encnet_jax import cli

VERBS = {
    "train": "train a model, or resume a training",
    "evaluate": "score a trained model on a split of its data set",
    "compare": "compare evaluations of several runs on one page",
    "predict": "segment or classify images",
    "export": "write a trained model as StableHLO, ONNX, or a model folder",
    "data": "prepare, check and show a data set",
    "convert": "import PyTorch weights as a workdir",
    "app": "segment images on a local web page",
}


def run(verb: str) -> None:
    """Runs a verb with the flags of `sys.argv`, and exits with its code."""
    if verb == "data" and (place := _place_of_import(sys.argv)):
        verb = "data_import"
        del sys.argv[place]
        sys.argv[0] += " import"
    module = importlib.import_module(f"encnet_jax.commands.{verb}")
    module.define_flags()
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(f"{module.__doc__}\nFlags:\n{flags.FLAGS.module_help(module.__name__)}")
        sys.exit()
    cli.run(module.main)


def _place_of_import(arguments: list[str]) -> int:
    """Returns where `import` stands, possibly after flags; 0: nowhere.

    After a flag without `=` it is its value, except after one that takes none.
    """
    for place, argument in enumerate(arguments[1:], 1):
        before = arguments[place - 1] if place > 1 else ""
        flag = before.startswith("-") and "=" not in before
        if argument == "import" and not (flag and "skip_invalid" not in before):
            return place
    return 0
