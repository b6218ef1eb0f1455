"""Shows and checks a data set: python -m encnet_jax.data configs/NAME.py.

Prepares the set if it needs that, and reads every example of the splits. Prints for
each the sizes and how frequent the classes are, for training also weights by
that, and writes SPLIT.png, a contact sheet of examples under their labels. What cannot
be used is named, line by line; the exit code is then 2. Keys of the configuration can
be given as for training: `--config.data.data_dir=DIR`.
"""

import sys
import textwrap
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from encnet_jax import cli
from encnet_jax.data.datasets import Dataset
from encnet_jax.data.registry import open_dataset
from encnet_jax.data.statistics import (
    Statistics,
    describe,
    median_frequency_weights,
    spread,
    summarize,
)
from encnet_jax.errors import UserError
from encnet_jax.run.progress import Counter
from encnet_jax.visualize.panels import contact_sheet

_SHOWN = 12  # examples on a contact sheet


def define_flags() -> None:
    """Defines the flags of the verb; makes `--config=` of a positional file."""
    sys.argv[1:] = _name_config(sys.argv[1:])
    config_flags.DEFINE_config_file("config", None, "File under configs/.")
    flags.DEFINE_list(
        "split", None, "Splits, joined by commas; training and evaluation if none."
    )
    flags.DEFINE_string("output", None, "Folder; runs/NAME/data if none.")
    flags.DEFINE_string(
        "manual_dir", None, "Folder of the archives that must be got by hand."
    )
    flags.DEFINE_integer(
        "limit", None, "Images of a split to read, spread evenly; all if none.", 1
    )


def main(arguments: list[str]) -> int:
    """Runs the command; returns 2 if something in the set cannot be used."""
    cli.reject_positional(arguments)
    values = flags.FLAGS
    if values.config is None:
        raise UserError("no configuration: give one, such as configs/folder.py")
    config, workdir = cli.config_and_workdir(None)
    if values.manual_dir and not Path(values.manual_dir).is_dir():
        raise UserError(f"--manual_dir={values.manual_dir}: no such folder")
    splits = values.split or [config.data.train_split, config.evaluation.split]
    datasets = {
        split: open_dataset(
            config.data.name,
            split,
            config.data.data_dir,
            drawn=config.data.cache_on_device,
            check=False,
            manual_dir=values.manual_dir,
        )
        for split in splits
    }
    output = Path(values.output or workdir / "data")
    problems = 0
    for split, dataset in datasets.items():
        found = _read(dataset, values.limit)
        problems += len(found.problems)
        _print(split, dataset, found)
        if found.indices and split == config.data.train_split:
            _print_weights(found)
        if found.indices:
            print(f"contact sheet: {_save_sheet(dataset, found, output, split)}\n")
    return 2 if problems else 0


def _read(dataset: Dataset, limit: int | None) -> Statistics:
    indices = spread(range(len(dataset)), limit or len(dataset))
    counter = Counter(len(indices), "images")
    found = summarize(dataset, indices, counter.show)
    counter.close()
    return found


def _print(split: str, dataset: Dataset, found: Statistics) -> None:
    for problem in found.problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.stderr.flush()
    published = dataset.info.splits[split]
    print(
        f"{dataset.info.name}, {split}: {len(dataset)} images"
        + (f" ({published} published)" if published else "")
        + f"; {len(found.indices)} read, {len(found.problems)} problems"
    )
    if found.indices:
        print(describe(found, dataset.info))


def _print_weights(found: Statistics) -> None:
    weights = ", ".join(f"{weight:.4g}" for weight in median_frequency_weights(found))
    indent = " " * 4
    print(
        "Median frequency / frequency (SegNet's rule), should rare classes gain:\n"
        "config.loss.class_weights = (\n"
        f"{textwrap.fill(weights, 88, initial_indent=indent, subsequent_indent=indent)}"
        "\n)"
    )


def _save_sheet(dataset: Dataset, found: Statistics, output: Path, split: str) -> Path:
    examples = [dataset[number] for number in spread(found.indices, _SHOWN)]
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{split}.png"
    contact_sheet(examples, dataset.info.colors, dataset.info.class_names).save(path)
    return path


def _name_config(arguments: list[str]) -> list[str]:
    """Makes `--config=` of an argument that is a Python file, unless there is one."""
    if any(item.split("=")[0] == "--config" for item in arguments):
        return arguments
    return [
        f"--config={item}"
        if item.partition(":")[0].endswith(".py") and not item.startswith("-")
        else item
        for item in arguments
    ]
