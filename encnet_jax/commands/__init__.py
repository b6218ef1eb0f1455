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
    if verb == "data" and sys.argv[1:2] == ["import"]:
        verb = "data_import"
        sys.argv[:2] = [f"{sys.argv[0]} import"]
    module = importlib.import_module(f"encnet_jax.commands.{verb}")
    module.define_flags()
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(f"{module.__doc__}\nFlags:\n{flags.FLAGS.module_help(module.__name__)}")
        sys.exit()
    cli.run(module.main)
