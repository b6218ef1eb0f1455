"""Trains a model: encnet train --config=NAME [--workdir=DIR].

NAME is a recipe, such as camvid or camvid:cpu, or the path of a Python file like those
in configs/. Any key can be overridden: --config.learning_rate=0.02. Rerun the command
to resume.
"""

from absl import flags

from encnet_jax import cli


def define_flags() -> None:
    """Defines the flags of the verb."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/NAME.")
    flags.DEFINE_string("distributed", None, "Multiple hosts: see docs/scale.md.")
    flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    """Runs the training."""
    from encnet_jax.run.distributed import connect_hosts
    from encnet_jax.train import train
    from encnet_jax.train.validation import score_texts

    cli.reject_positional(arguments)
    connect_hosts(flags.FLAGS.distributed)
    config, workdir = cli.config_and_workdir(flags.FLAGS.workdir)
    cli.warn_of_unread_settings(config, cli.overridden_keys())
    scores = train(config, workdir)
    if scores is not None:
        first, *_ = score_texts(scores)
        cli.print_on_host0(f"{first}; everything is in {workdir}")
