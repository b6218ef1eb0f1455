"""Compares runs: encnet compare RUN_A RUN_B ... [--split=SPLIT] [--output=FILE.html].

Writes one page with the curves of the trainings, the scores, the differences of every
class to the first run with intervals from a paired bootstrap over images, and the
images on which the runs differ most. Each run must have been evaluated on the split,
which writes DIR/evaluation/SPLIT.json and SPLIT-images.jsonl; test-ms is the evaluation
with scales. Without --split it is the one evaluation that all runs have. The page loads
nothing and needs no network.
"""

import os
from pathlib import Path

from absl import flags

from encnet_jax import cli
from encnet_jax.errors import UserError, require_package
from encnet_jax.report.page import MARK


def define_flags() -> None:
    """Defines the flags of the verb."""
    flags.DEFINE_string(
        "split", None, "Evaluation, such as test-ms; default: the one that all have."
    )
    flags.DEFINE_string("output", None, "Page to write; default: compare-SPLIT.html.")
    flags.DEFINE_string("data_dir", None, "Folder of the data set, if it moved.")


def main(arguments: list[str]) -> None:
    """Runs the comparison."""
    from encnet_jax.compare.evaluations import load_evaluations, shared_evaluation
    from encnet_jax.compare.page import save_comparison
    from encnet_jax.files import check_folder, is_address, make_folder, user_path

    require_package("jinja2", "train", "compare")
    values = flags.FLAGS
    split = values.split
    if split is not None and (not split or Path(split).name != split):
        raise UserError(f"--split={split}: must be a name, such as test-ms")
    workdirs = [user_path(argument) for argument in arguments]
    split = split or shared_evaluation(workdirs)
    given = values.output
    output = cli.flag_path(
        "output", f"compare-{split}.html" if given is None else given
    )
    check_output(output)
    check_folder(output.parent, "--output")
    data_dir = values.data_dir
    if data_dir is not None and not is_address(data_dir):
        data_dir = str(cli.flag_path("data_dir", data_dir))
        if not os.path.isdir(data_dir):
            raise UserError(f"--data_dir={data_dir}: no such folder")
    evaluations = load_evaluations(workdirs, split)
    make_folder(output.parent, "--output")
    save_comparison(output, evaluations, data_dir)
    print(output)


def check_output(path: Path) -> None:
    """Raises `UserError` if a page would replace a folder or another file."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except (FileNotFoundError, NotADirectoryError):
        return
    except IsADirectoryError as error:
        raise UserError(
            f"--output={path}: is a folder; name a file, FILE.html"
        ) from error
    except OSError as error:
        raise UserError(
            f"--output={path}: cannot be replaced: {error.strerror}"
        ) from error
    if MARK.encode() not in start:
        raise UserError(f"--output={path}: exists and is no page of encnet_jax")
