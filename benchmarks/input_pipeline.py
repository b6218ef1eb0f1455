"""The input pipeline against a plain one with PIL.

    python -m benchmarks.input_pipeline [--images=N] [--repeats=R] [--json=FILE]

Generates images with the statistics of photographs, stores them like prepared data sets
(records of JPEG or PNG bytes), and makes training batches in four ways, interleaved in
one run:

- `PIL`: the steps of PyTorch-Encoding, sequentially in one process: decode, flip,
  resize the whole image, pad, crop, normalize in float32, stack the batch. Uses its
  cheaper filter, bilinear as here; later versions use bicubic;
- `host`: this pipeline; normalization is part of the training step on the device;
- `device`: this pipeline with data.resize=device; the work of the device is timed
  separately, on the default device of JAX;
- `decode`: only decoding of the whole JPEG or PNG and its labels with PIL.

Rates are images per second of CPU time over all threads, which other processes disturb
less than wall time; results are medians over the repeats. Memory in use is measured
before that, over three epochs of `host` and `device`.
"""

import functools
import io
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from PIL import Image, ImageOps

from benchmarks.photographs import CountingDataset, make_dataset
from encnet_jax import cli
from encnet_jax.data.augment_device import resized_batch
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import ADE20K, CITYSCAPES, DatasetInfo
from encnet_jax.data.label_map import label_table
from encnet_jax.files import check_folder

_IMAGES = flags.DEFINE_integer(
    "images", 64, "Images of 683x512; a quarter as many of 2048x1024."
)
_REPEATS = flags.DEFINE_integer("repeats", 9, "Rounds of each way.")
_JSON = flags.DEFINE_string("json", None, "File for the results.")
_BATCH = 8
_WAYS = "PIL", "host", "device", "decode"


class Case(NamedTuple):
    """Images of one kind, and the augmentation applied to them."""

    name: str
    info: DatasetInfo
    size: tuple[int, int]
    stored: dict[str, Any]
    augmentation: Augmentation
    padded_size: int


# Crops as in configs/ade20k.py and configs/cityscapes.py. At this quality the small
# JPEGs take 50 kB; those of ADE20K take about 40.
_JPEG = dict(format="JPEG", quality=90)
_LARGE = CITYSCAPES, (1024, 2048)
CASES = (
    Case("683x512 JPEG", ADE20K, (512, 683), _JPEG, Augmentation(520, 480), 704),
    Case("2048x1024 JPEG", *_LARGE, _JPEG, Augmentation(2048, 768), 0),
    Case("2048x1024 PNG", *_LARGE, dict(format="PNG"), Augmentation(2048, 768), 0),
)


def main(arguments: list[str]) -> None:
    """Measures every case, prints a report, and writes the results."""
    cli.reject_positional(arguments)
    if _JSON.value:
        check_folder(Path(_JSON.value).parent, "--json")
    results = {}
    for case in CASES:
        count = max(_IMAGES.value // (1 if case.size[0] < 1000 else 4), _BATCH)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records"
            dataset = make_dataset(path, case.info, case.size, count, **case.stored)
            results[case.name] = measure(case, dataset)
        print(report(case, results[case.name]), flush=True)
    if _JSON.value:
        written = {"machine": machine(), "repeats": _REPEATS.value, "cases": results}
        Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
        Path(_JSON.value).write_text(json.dumps(written, indent=2) + "\n")


def decode(dataset: CountingDataset, index: int) -> tuple[Image.Image, Image.Image]:
    """Decodes a whole image and its labels."""
    fields = dataset.records.features(index)
    image = Image.open(io.BytesIO(fields["image"])).convert("RGB")
    labels = Image.open(io.BytesIO(fields["label"]))
    labels.load()
    return image, labels


def pil_example(
    case: Case, dataset: CountingDataset, table: np.ndarray, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Makes an example by the steps of PyTorch-Encoding."""
    image, labels = decode(dataset, index)
    crop, rng = case.augmentation.crop_size, np.random.default_rng(index)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        labels = labels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = (
        rng.uniform(*case.augmentation.scale_range)
        * case.augmentation.base_size
        / max(image.size)
    )
    width, height = (round(length * scale) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    labels = labels.resize((width, height), Image.Resampling.NEAREST)
    if min(width, height) < crop:
        border = 0, 0, max(crop - width, 0), max(crop - height, 0)
        image = ImageOps.expand(image, border, fill=0)
        labels = ImageOps.expand(labels, border, fill=0)
    left, top = (int(rng.integers(length - crop + 1)) for length in image.size)
    box = left, top, left + crop, top + crop
    pixels = np.asarray(image.crop(box), np.float32)
    mean, std = np.float32(case.info.mean), np.float32(case.info.std)
    return (pixels / 255 - mean) / std, table[np.asarray(labels.crop(box))]


def run_pil(case: Case, dataset: CountingDataset) -> int:
    """Makes an epoch of batches with PIL; returns the number of examples."""
    table = label_table(case.info).astype(np.int64)  # the dtype PyTorch's loss needs
    for first in range(0, len(dataset), _BATCH):
        indices = range(first, min(first + _BATCH, len(dataset)))
        examples = [pil_example(case, dataset, table, index) for index in indices]
        for part in zip(*examples):
            np.stack(part)
    return len(dataset)


def run_decode(dataset: CountingDataset) -> int:
    """Decodes every example; returns the number of examples."""
    for index in range(len(dataset)):
        decode(dataset, index)
    return len(dataset)


def our_batches(
    case: Case, dataset: CountingDataset, padded_size: int | None
) -> Iterator[dict[str, np.ndarray]]:
    """Returns batches of crops, or with `padded_size` of padded source pixels."""
    from encnet_jax.data.loader import train_batches

    return train_batches(
        dataset, case.augmentation, batch_size=_BATCH, seed=0, padded_size=padded_size
    )


def run_ours(case: Case, dataset: CountingDataset, padded_size: int | None) -> int:
    """Makes an epoch; returns the number of examples, including those read ahead."""
    dataset.started.clear()
    batches = our_batches(case, dataset, padded_size)
    for _ in itertools.islice(batches, len(dataset) // _BATCH):
        pass
    batches.close()  # waits for examples in progress
    return len(dataset.started)


def measure(case: Case, dataset: CountingDataset) -> dict[str, Any]:
    """Measures memory, rates, and rates relative to PIL."""
    padded_sizes = {"host": None, "device": case.padded_size}
    memory = {
        name: memory_by_epoch(our_batches(case, dataset, size), len(dataset))
        for name, size in padded_sizes.items()
    }
    ways: dict[str, Callable[[], int]] = {
        "PIL": functools.partial(run_pil, case, dataset),
        "decode": functools.partial(run_decode, dataset),
        **{
            name: functools.partial(run_ours, case, dataset, size)
            for name, size in padded_sizes.items()
        },
    }
    per_core: dict[str, list[float]] = {name: [] for name in _WAYS}
    per_second: dict[str, list[float]] = {name: [] for name in _WAYS}
    for turn in range(_REPEATS.value):
        for name in _WAYS[turn % 4 :] + _WAYS[: turn % 4]:
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            images = ways[name]()
            per_core[name].append(images / (time.process_time() - cpu_start))
            per_second[name].append(images / (time.perf_counter() - wall_start))
    ratios = {
        name: [rate / pil for rate, pil in zip(per_core[name], per_core["PIL"])]
        for name in _WAYS
    }
    size = sum(len(dataset.records[index]) for index in range(len(dataset)))
    return {
        "images": len(dataset),
        "kilobytes": round(size / len(dataset) / 1000),
        "images_per_core_second": medians(per_core),
        "times_pil": medians(ratios),
        "images_per_second": medians(per_second),
        "device_milliseconds": device_time(case, dataset),
        "megabytes_by_epoch": memory,
    }


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(found), 2) for name, found in values.items()}


def memory_by_epoch(batches: Iterator[Any], count: int) -> list[int]:
    """Returns the peak memory during each of three epochs, in megabytes (Linux)."""
    page = os.sysconf("SC_PAGE_SIZE")
    peaks = []
    for _ in range(3):
        in_use = 0
        for _ in itertools.islice(batches, count // _BATCH):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            in_use = max(in_use, pages * page // 10**6)
        peaks.append(in_use)
    batches.close()
    return peaks


def device_time(case: Case, dataset: CountingDataset) -> float:
    """Returns the milliseconds per image that resizing takes on the device."""
    batches = our_batches(case, dataset, case.padded_size)
    batch = jax.device_put(next(batches))
    batches.close()
    resize = jax.jit(functools.partial(resized_batch, augmentation=case.augmentation))
    jax.block_until_ready(resize(batch))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(resize(batch))
        times.append(1000 * (time.perf_counter() - start) / _BATCH)
    return round(statistics.median(times), 3)


def report(case: Case, result: dict[str, Any]) -> str:
    lines = [
        f"{case.name}, {result['kilobytes']} kB per record, "
        f"base {case.augmentation.base_size}, crop {case.augmentation.crop_size}: "
        f"{result['images']} images",
        f"  {'':8}{'images/s/core':>16}{'times PIL':>11}{'images/s':>10}",
    ]
    keys = "images_per_core_second", "times_pil", "images_per_second"
    for name in _WAYS:
        rates = (result[key][name] for key in keys)
        lines.append("  {:8}{:16.1f}{:11.2f}{:10.1f}".format(name, *rates))
    lines.append(
        f"  resizing on the device: {result['device_milliseconds']} ms per image on "
        f"{jax.devices()[0].device_kind}"
    )
    lines.append(f"  MB in use, epochs 1 to 3: {result['megabytes_by_epoch']}")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    import tensorflow as tf

    text = Path("/proc/cpuinfo").read_text()
    names = [line for line in text.splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].partition(":")[2].strip() if names else "",
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "tensorflow": tf.__version__,
        "pillow": Image.__version__,
    }


if __name__ == "__main__":
    cli.run(main)
