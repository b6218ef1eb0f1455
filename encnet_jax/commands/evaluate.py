"""Scores a trained model: python evaluate.py --config=configs/NAME.py [--split=test].

Writes DIR/evaluation/SPLIT.json, with scales SPLIT-ms.json, and pictures, and prints a
table. Whole images pass the network as they are, or with
--scales=0.5,0.75,1,1.25,1.5,1.75 --flip in windows of many scales, the protocol of
PyTorch-Encoding; docs/evaluation.md tells of others. The same command goes on where it
was killed. --submission writes what the data set's test server asks for, of the split
or of --images=DIR.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from encnet_jax import cli


def define_flags() -> None:
    """Defines the flags of the verb."""
    config_flags.DEFINE_config_file("config", None, "File under configs/.")
    flags.DEFINE_string("workdir", None, "Folder of the run; runs/NAME if none.")
    flags.DEFINE_string("split", None, "Split; that of the config if none.")
    flags.DEFINE_list("scales", None, "Scales of the long side: 0.5,1,1.75.")
    flags.DEFINE_bool("flip", False, "Add the mirror image at every scale.")
    flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a number.")
    flags.DEFINE_bool("submission", False, "Write predictions for a server.")
    flags.DEFINE_string("images", None, "Folder of images to predict alone.")
    flags.DEFINE_string("distributed", None, "Many hosts: docs/scale.md.")
    flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    """Runs the evaluation."""
    from encnet_jax.evaluate.workdir_run import evaluate_workdir
    from encnet_jax.run.distributed import connect_hosts

    cli.reject_positional(arguments)
    values = flags.FLAGS
    connect_hosts(values.distributed)
    protocol: dict[str, Any] = {"flip": True} if values.flip else {}
    if values.scales:
        protocol["scales"] = cli.numbers("scales", values.scales)
    config, workdir = cli.config_and_workdir(values.workdir, protocol)
    split = values.split or config.evaluation.split
    text = evaluate_workdir(
        config,
        workdir,
        split,
        values.step,
        submission=values.submission,
        images=Path(values.images) if values.images else None,
    )
    cli.print_on_host0(text)
