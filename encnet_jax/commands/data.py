"""Prepares and checks a data set: encnet data NAME.

Reads every example of the splits and prints image sizes and class frequencies, for the
training split also the classes that do not occur and, for segmentation, class weights.
Writes SPLIT.png, a contact sheet of examples with their labels. Invalid examples, and
labels that say nothing (all ignored, or 0 and 255 only), are listed, one per line, and
the exit code is 2.

NAME is a recipe or a file, as in training, and keys are overridden alike:
--config.data.data_dir=DIR.
"""

import os
import re
import sys
import textwrap
from pathlib import Path

from absl import flags

from encnet_jax import cli
from encnet_jax.data.bands import declare_bands, describe_bands
from encnet_jax.data.datasets import Dataset, FileDataset
from encnet_jax.data.image_io import set_max_image_pixels
from encnet_jax.data.label_check import label_problem, unlabeled_classes
from encnet_jax.data.normalization import measure_bands
from encnet_jax.data.registry import dataset_info, open_dataset
from encnet_jax.data.result_file import result_source, source_digest
from encnet_jax.data.statistics import (
    Statistics,
    describe,
    evenly_spaced,
    median_frequency_weights,
    summarize,
)
from encnet_jax.errors import UserError
from encnet_jax.files import check_folder, make_folder
from encnet_jax.run.progress import Counter
from encnet_jax.visualize.panels import save_contact_sheet

_SHEET_EXAMPLES = 12


def define_flags() -> None:
    """Defines the flags of the verb, and allows a positional configuration."""
    sys.argv[1:] = _name_config(sys.argv[1:])
    cli.define_config()
    flags.DEFINE_list(
        "split",
        None,
        "Comma-separated splits; default: those of training and evaluation.",
    )
    flags.DEFINE_string(
        "output", None, "Folder of the contact sheets; default: runs/NAME/data."
    )
    flags.DEFINE_string(
        "manual_dir", None, "Folder of the archives that must be downloaded by hand."
    )
    flags.DEFINE_integer(
        "limit", None, "Number of evenly spaced images to read; default: all.", 1
    )


def main(arguments: list[str]) -> int:
    """Runs the command; returns 2 if the data set has problems."""
    cli.reject_positional(arguments)
    values = flags.FLAGS
    if values.config is None:
        raise UserError("no configuration given; example: encnet data folder")
    config, workdir = cli.config_and_workdir(None)
    given = values.manual_dir
    manual = None if given is None else cli.flag_path("manual_dir", given)
    if manual is not None and not os.path.isdir(manual):
        raise UserError(f"--manual_dir={manual}: no such folder")
    set_max_image_pixels(config.data.max_image_pixels)
    given = values.output
    output = workdir / "data" if given is None else cli.flag_path("output", given)
    check_folder(output, "--output")
    splits = values.split or [config.data.train_split, config.evaluation.split]
    for sheet in (output / f"{split}.png" for split in splits):
        # In the default folder it can only be an older version's.
        own = result_source(sheet) == source_digest(sheet) if sheet.exists() else True
        if given is not None and not own:
            raise UserError(f"{sheet}: exists, and is not a contact sheet")
    data = config.data
    info = dataset_info(data.name, data.data_dir)
    bands = declare_bands(info, data.channels, data.value_range)
    datasets = {
        split: open_dataset(
            data.name,
            split,
            data.data_dir,
            bands=bands,
            in_memory=data.cache_on_device,
            check=False,
            manual_dir=None if manual is None else str(manual),
        )
        for split in splits
    }
    problems = 0
    for split, dataset in datasets.items():
        stats = _read(dataset, values.limit)
        if problem := label_problem(dataset, stats, split):
            stats.problems.append(problem)
        problems += len(stats.problems)
        _print(split, dataset, stats)
        if stats.indices and split == config.data.train_split:
            absent = unlabeled_classes(stats, dataset.info)
            if absent and not values.limit:
                print(f"warning: {absent}", file=sys.stderr, flush=True)
            if dataset.info.task == "segmentation":
                _print_weights(stats)
        if stats.indices:
            print(f"contact sheet: {_save_sheet(dataset, stats, output, split)}\n")
    return 2 if problems else 0


def _read(dataset: Dataset, limit: int | None) -> Statistics:
    indices = evenly_spaced(range(len(dataset)), limit or len(dataset))
    counter = Counter(len(indices), "images")
    stats = summarize(dataset, indices, counter.show)
    counter.close()
    return stats


def _print(split: str, dataset: Dataset, stats: Statistics) -> None:
    for problem in stats.problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.stderr.flush()
    published = dataset.info.splits[split]
    print(
        f"{dataset.info.name}, {split}: {len(dataset)} images"
        + (f" ({published} published)" if published else "")
        + f"; {len(stats.indices)} read, {len(stats.problems)} problems"
    )
    if stats.indices:
        print(describe(stats, dataset.info))


def _print_weights(stats: Statistics) -> None:
    weights = ", ".join(f"{weight:.4g}" for weight in median_frequency_weights(stats))
    indent = " " * 4
    print(
        "Class weights by median frequency balancing, as training computes them with\n"
        "config.loss.class_balance = 'median_frequency':\n"
        "config.loss.class_weights = (\n"
        f"{textwrap.fill(weights, 88, initial_indent=indent, subsequent_indent=indent)}"
        "\n)"
    )


def _save_sheet(dataset: Dataset, stats: Statistics, output: Path, split: str) -> Path:
    info = dataset.info
    if isinstance(dataset, FileDataset) and info.banded:
        info = measure_bands(dataset, stats.indices)
        dataset.info = info
        print(describe_bands(info))
    examples = [
        dataset[i].shown(info) for i in evenly_spaced(stats.indices, _SHEET_EXAMPLES)
    ]
    make_folder(output, "--output")
    save_contact_sheet(examples, dataset.info, output / f"{split}.png")
    return output / f"{split}.png"


def _name_config(arguments: list[str]) -> list[str]:
    """Turns the first positional argument into `--config`, unless that is given.

    It goes to the front: flags that override its keys must follow it.
    """
    if any(re.match("--?config(=|$)", item) for item in arguments):
        return arguments
    for index, item in enumerate(arguments):
        # `--output DIR`: the value of a flag.
        is_value = index and re.fullmatch("--?[^=]+", arguments[index - 1])
        if not item.startswith("-") and not is_value:
            return [f"--config={item}", *arguments[:index], *arguments[index + 1 :]]
    return arguments
