"""Scores a trained model: python evaluate.py --config=configs/NAME.py [--split=test].

Writes DIR/evaluation/SPLIT.json and prints a table.
"""

from absl import flags
from ml_collections import config_flags

from encnet_jax import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "File under configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/NAME if none.")
_SPLIT = flags.DEFINE_string("split", None, "Split; that of the config if none.")
_STEP = flags.DEFINE_string("step", "best", "Checkpoint: best, latest or a number.")
flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    """Runs the evaluation."""
    from encnet_jax.evaluation import evaluate_workdir

    command.no_arguments(arguments)
    config, workdir = command.config_and_workdir(_CONFIG, _WORKDIR.value)
    split = _SPLIT.value or config.evaluation.split
    print(evaluate_workdir(config, workdir, split, _STEP.value))


if __name__ == "__main__":
    command.run(main)
