"""CamVid from scratch: trains one run and scores it by every convention.

    python -m benchmarks.camvid --data_dir=DIR [--run=NAME] [--split=train|trainval]
        [--seed=0] [--set=KEY=VALUE ...] [--recipe=gpu|weighted|cpu]
        [--hold_out=0001TP|0006R0|0016E5] [--minutes=M [--fit_steps]]
        [--conventions=running,batch,scales]
        [--workdir=DIR] [--output=FILE.json] [--files=DIR]

A run is the recipe of `configs/camvid.py` with the changes that `camvid_runs.RUNS` has
under its name, and those of `--set`. The weights of its last step are scored on test at
one scale with running statistics, at one scale with the statistics of batches of ten
test images (as FC-DenseNet103 was), and at six scales with mirror images: one row each
in the output, in place of an earlier one of the same run. `--hold_out` leaves a drive
out of the training and scores that in place of test: choices are made by such runs.

`--minutes` bounds the whole command, `--evaluation_minutes` of it for scores. A run
that cannot end in it is refused; with `--fit_steps` its schedule is shortened to what
fits, by the time of a step, measured first. If it turns out slower, it is stopped and
scored as it is; its rows have `"complete": false`. The same command resumes it, as it
does an interrupted run. `minutes` of a row are those of the training.

Writes to `--files` (default: the workdir) files whose names start with that of the
workdir: _metrics.jsonl, _curve.png, _confusion.png, _examples.png and, up to 16 MiB,
_weights.npz: float16 arrays `params/PATH` and float32 `batch_stats/PATH`, PATH as in
`run.state.flatten_paths`.

    python -m benchmarks.camvid --pack=NEW_DIR --data_dir=DIR --jpeg_quality=90

writes a copy of the data set with smaller images; rows of runs on it have the quality.
`--add=FILE.json` adds the rows of another file to the output, as if run here. Images
are augmented on the device by every recipe, so that TensorFlow is not needed; the
figures need matplotlib.
"""

import time
from pathlib import Path

from absl import flags

from benchmarks import camvid_images, camvid_runs
from benchmarks.camvid_runs import RUNS, SPLITS, Run
from benchmarks.camvid_scores import CONVENTIONS, put_row, read_rows
from benchmarks.camvid_training import Limits, run_once
from encnet_jax import cli
from encnet_jax.errors import UserError
from encnet_jax.files import check_folder

_STARTED = time.perf_counter()
_RUN = flags.DEFINE_enum("run", "recipe", list(RUNS), "What differs from the recipe.")
_RECIPE = flags.DEFINE_string("recipe", "gpu", "Variant of configs/camvid.py.")
_SPLIT = flags.DEFINE_enum("split", "train", SPLITS, "What to train on.")
_HOLD_OUT = flags.DEFINE_string("hold_out", "", "A drive to score in place of test.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.")
_SET = flags.DEFINE_multi_string("set", [], "Other settings, each as key=value.")
_DATA = flags.DEFINE_string("data_dir", None, "Folder of the data set.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Default: runs/camvid-benchmark/NAME.")
_OUTPUT = flags.DEFINE_string(
    "output", "benchmarks/results/camvid.json", "The rows of all runs."
)
_FILES = flags.DEFINE_string("files", None, "Folder for figures; default: the workdir.")
_CONVENTIONS = flags.DEFINE_list(
    "conventions",
    list(CONVENTIONS),
    "How the weights are scored; the first has figures.",
)
_MINUTES = flags.DEFINE_float("minutes", None, "Bound of the command.", lower_bound=0)
_EVALUATION = flags.DEFINE_float(
    "evaluation_minutes", 2.0, "Part of --minutes for scores.", lower_bound=0
)
_FIT = flags.DEFINE_bool("fit_steps", False, "Shorten the schedule to --minutes.")
_PACK = flags.DEFINE_string("pack", None, "Only write smaller images to this folder.")
_ADD = flags.DEFINE_string("add", None, "Only add the rows of this file to --output.")
_QUALITY = flags.DEFINE_integer("jpeg_quality", 90, "Of the images of --pack.")


def main(arguments: list[str]) -> int | None:
    """Packs images, adds rows, or does a run."""
    cli.reject_positional(arguments)
    if _PACK.value:
        size = camvid_images.pack(Path(_PACK.value), _DATA.value, _QUALITY.value)
        print(f"{_PACK.value}: {size / 2**20:.1f} MiB")
        return None
    output = Path(_OUTPUT.value)
    if _ADD.value:
        check_folder(output.parent, "--output")
        for row in read_rows(Path(_ADD.value), "--add", needed=True):
            put_row(output, row)
        return None
    for name in _CONVENTIONS.value or [""]:
        if name not in CONVENTIONS:
            allowed = ", ".join(CONVENTIONS)
            raise UserError(f"--conventions={name}: allowed are {allowed}")
    run = Run(
        name=_RUN.value,
        recipe=_RECIPE.value,
        split=_SPLIT.value,
        hold_out=_HOLD_OUT.value,
        seed=_SEED.value,
        overrides=camvid_runs.parse_overrides(_SET.value),
        jpeg_quality=camvid_images.packed_quality(_DATA.value),
    )
    workdir = Path(_WORKDIR.value or Path("runs", "camvid-benchmark", run.title))
    files = Path(_FILES.value or workdir)
    minutes = _MINUTES.value
    if minutes is not None and minutes <= _EVALUATION.value:
        raise UserError(
            f"--minutes={minutes}: must be above --evaluation_minutes="
            f"{_EVALUATION.value}"
        )
    limits = Limits(minutes, _EVALUATION.value, _FIT.value, _STARTED)
    conventions = _CONVENTIONS.value
    rows = run_once(run, _DATA.value, workdir, files, output, limits, conventions)
    if rows is None:
        print(f"{workdir}: stopped by SIGTERM; rerun the command to resume")
        return 1
    return None


if __name__ == "__main__":
    cli.run(main)
