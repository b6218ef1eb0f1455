"""Trains a model: python train.py --config=configs/NAME.py [--workdir=DIR].

Any key of the configuration can be overridden: --config.learning_rate=0.02. Running the
same command again goes on where the run stands.
"""

from absl import flags
from ml_collections import config_flags

from encnet_jax import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "File under configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/NAME if none.")
flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    """Runs the training."""
    from encnet_jax.training import train

    command.no_arguments(arguments)
    config, workdir = command.config_and_workdir(_CONFIG, _WORKDIR.value)
    scores = train(config, workdir)
    print(f"mean IoU {scores['mean_iou']:.4f}; everything is in {workdir}")


if __name__ == "__main__":
    command.run(main)
