"""Trains a model: python train.py --config=configs/NAME.py [--workdir=DIR].

Any key of the configuration can be overridden: --config.learning_rate=0.02. Rerun the
command to resume.
"""

from absl import flags
from ml_collections import config_flags

from encnet_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "File under configs/.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default: runs/NAME."
)
_DISTRIBUTED = flags.DEFINE_string("distributed", None, "Many hosts: docs/scale.md.")
flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    """Runs the training."""
    from encnet_jax.run.distributed import connect_hosts
    from encnet_jax.train import train

    cli.reject_positional(arguments)
    connect_hosts(_DISTRIBUTED.value)
    config, workdir = cli.config_and_workdir(_CONFIG, _WORKDIR.value)
    scores = train(config, workdir)
    if scores is not None:
        (metric, value), *_ = scores.items()
        name = metric.replace("_iou", " IoU")
        cli.print_on_host0(f"{name} {value:.4f}; everything is in {workdir}")


if __name__ == "__main__":
    cli.run(main)
