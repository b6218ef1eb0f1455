"""Evaluates a model: encnet evaluate --config=NAME [--split=test].

Writes DIR/evaluation/SPLIT.json (SPLIT-ms.json with scales), figures, and SPLIT.html, a
page of all of it, and prints a table. Sizes and protocol are those of the training,
unless flags set them; with --scales=0.5,0.75,1,1.25,1.5,1.75 --flip, sliding windows at
several scales, as PyTorch-Encoding does. Other protocols: docs/evaluation.md. An
interrupted segmentation resumes when rerun. --submission writes predictions for the
test server of the data set, for the split or for --images=DIR.
"""

from typing import Any

from absl import flags

from encnet_jax import cli
from encnet_jax.errors import UserError


def define_flags() -> None:
    """Defines the flags of the verb."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/NAME.")
    flags.DEFINE_string("split", None, "Split; default: that of the config.")
    flags.DEFINE_list("scales", None, "Scales of the long side, such as 0.5,1,1.75.")
    flags.DEFINE_bool("flip", False, "Also evaluate mirrored at every scale.")
    flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a step number.")
    flags.DEFINE_bool("submission", False, "Write predictions for the test server.")
    flags.DEFINE_string("images", None, "Folder of images to predict instead.")
    flags.DEFINE_string("distributed", None, "Multiple hosts: see docs/scale.md.")
    flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    """Runs the evaluation."""
    from encnet_jax.evaluate.run import evaluate_workdir
    from encnet_jax.evaluate.settings import evaluation_config
    from encnet_jax.run.distributed import connect_hosts
    from encnet_jax.run.model_config import check_config

    cli.reject_positional(arguments)
    values = flags.FLAGS
    if (values.workdir or "").startswith("hf://"):
        raise UserError(
            f"--workdir={values.workdir}: scores are written to the workdir; save a "
            "copy first: encnet export --format=pretrained"
        )
    if values.images is not None and values.split is not None:
        raise UserError(
            f"--split={values.split}: not with --images, whose images are no split"
        )
    connect_hosts(values.distributed, ended_by_sigterm=True)
    protocol: dict[str, Any] = {}
    if values["flip"].present:
        protocol["flip"] = values.flip
    if values["scales"].present:
        protocol["scales"] = cli.numbers("scales", values.scales)
    config, workdir = cli.config_and_workdir(values.workdir, check=False)
    config.evaluation.update(protocol)
    explicit = {*cli.overridden_keys(), *(f"evaluation.{key}" for key in protocol)}
    config = evaluation_config(config, workdir, explicit)
    check_config(config)
    # Flags of the training may have come with its command; they have no effect here.
    evaluation_keys = sorted(key for key in explicit if key.startswith("evaluation."))
    cli.warn_of_unread_settings(config, evaluation_keys)
    images = values.images
    if images is not None:
        images = cli.flag_path("images", images)
    split = values.split or config.evaluation.split
    config.evaluation.split = split  # as results and page list it
    text = evaluate_workdir(
        config,
        workdir,
        split,
        values.step,
        submission=values.submission,
        images=images,
        command=cli.command_line(),
    )
    cli.print_on_host0(text)
