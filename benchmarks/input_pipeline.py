"""The input pipeline beside a plain one by PIL: python -m benchmarks.input_pipeline.

    python -m benchmarks.input_pipeline [--images=N] [--repeats=R] [--json=FILE]

Draws pictures with the statistics of photographs, stores them as prepared data sets are
(records of JPEG or PNG bytes), and makes training batches of them in four ways, by
turns, in one run:

- `PIL`: the steps of PyTorch-Encoding, one after the other in one process: decode,
  mirror, resize the whole picture, pad, crop, normalize in float32, stack the batch. Of
  its filters the cheaper one, bilinear as here; later versions take the bicubic;
- `host`: our pipeline; normalizing is left to the device, where it is part of the step;
- `device`: our pipeline with data.resize=device; what the device then does is timed
  apart, on the device that JAX finds;
- `decode`: decoding the whole JPEG or PNG and its labels by PIL, and nothing else.

Rates are images per second of processor time, over all threads: other processes on the
machine disturb it less than the clock. Given are medians over the repeats. Before that,
both ways of ours run for three epochs, and the memory in use is noted.
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
from encnet_jax.data.datasets import label_table

_IMAGES = flags.DEFINE_integer("images", 64, "Of 683x512; a quarter of 2048x1024.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Turns of each way.")
_JSON = flags.DEFINE_string("json", None, "File for the results.")
_BATCH = 8
_WAYS = "PIL", "host", "device", "decode"


class Case(NamedTuple):
    """Pictures of one kind, and augmentation crops are made of them."""

    name: str
    info: DatasetInfo
    size: tuple[int, int]
    stored: dict[str, Any]
    augmentation: Augmentation
    padded_size: int


# HostResizer as in configs/ade20k.py and configs/cityscapes.py. At this quality the
# small JPEGs have 50 kB; those of ADE20K have about 40.
_JPEG = dict(format="JPEG", quality=90)
_LARGE = CITYSCAPES, (1024, 2048)
CASES = (
    Case("683x512 JPEG", ADE20K, (512, 683), _JPEG, Augmentation(520, 480), 704),
    Case("2048x1024 JPEG", *_LARGE, _JPEG, Augmentation(2048, 768), 0),
    Case("2048x1024 PNG", *_LARGE, dict(format="PNG"), Augmentation(2048, 768), 0),
)


def main(arguments: list[str]) -> None:
    """Measures every case, prints each, and writes what was asked for."""
    cli.reject_positional(arguments)
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


def decode(dataset: CountingDataset, number: int) -> tuple[Image.Image, Image.Image]:
    """Returns an image and its labels, whole."""
    fields = dataset.records.features(number)
    image = Image.open(io.BytesIO(fields["image"])).convert("RGB")
    labels = Image.open(io.BytesIO(fields["label"]))
    labels.load()
    return image, labels


def pil_example(
    case: Case, dataset: CountingDataset, table: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Does what PyTorch-Encoding does, in its order."""
    image, labels = decode(dataset, number)
    crop, rng = case.augmentation.crop_size, np.random.default_rng(number)
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
    """Makes an epoch of batches by PIL; returns the number of examples."""
    table = label_table(case.info).astype(np.int64)  # what PyTorch's loss takes
    for first in range(0, len(dataset), _BATCH):
        numbers = range(first, min(first + _BATCH, len(dataset)))
        examples = [pil_example(case, dataset, table, number) for number in numbers]
        for part in zip(*examples):
            np.stack(part)
    return len(dataset)


def run_decode(dataset: CountingDataset) -> int:
    """Decodes every example; returns their number."""
    for number in range(len(dataset)):
        decode(dataset, number)
    return len(dataset)


def our_batches(
    case: Case, dataset: CountingDataset, padded_size: int | None
) -> Iterator[dict[str, np.ndarray]]:
    """Returns our batches: of crops, or with a size of canvases."""
    from encnet_jax.data.loader import train_batches

    return train_batches(
        dataset, case.augmentation, batch_size=_BATCH, seed=0, padded_size=padded_size
    )


def run_ours(case: Case, dataset: CountingDataset, padded_size: int | None) -> int:
    """Makes an epoch; returns the number of examples, with those begun ahead."""
    dataset.started.clear()
    batches = our_batches(case, dataset, padded_size)
    for _ in itertools.islice(batches, len(dataset) // _BATCH):
        pass
    batches.close()  # waits for those begun
    return len(dataset.started)


def measure(case: Case, dataset: CountingDataset) -> dict[str, Any]:
    """Returns memory, rates, and ratios to the rate of PIL."""
    canvas_sizes = {"host": None, "device": case.padded_size}
    memory = {
        name: memory_by_epoch(our_batches(case, dataset, size), len(dataset))
        for name, size in canvas_sizes.items()
    }
    ways: dict[str, Callable[[], int]] = {
        "PIL": functools.partial(run_pil, case, dataset),
        "decode": functools.partial(run_decode, dataset),
        **{
            name: functools.partial(run_ours, case, dataset, size)
            for name, size in canvas_sizes.items()
        },
    }
    per_core: dict[str, list[float]] = {name: [] for name in _WAYS}
    by_clock: dict[str, list[float]] = {name: [] for name in _WAYS}
    for turn in range(_REPEATS.value):
        for name in _WAYS[turn % 4 :] + _WAYS[: turn % 4]:
            processor, clock = time.process_time(), time.perf_counter()
            images = ways[name]()
            per_core[name].append(images / (time.process_time() - processor))
            by_clock[name].append(images / (time.perf_counter() - clock))
    ratios = {
        name: [rate / pil for rate, pil in zip(per_core[name], per_core["PIL"])]
        for name in _WAYS
    }
    size = sum(len(dataset.records[number]) for number in range(len(dataset)))
    return {
        "images": len(dataset),
        "kilobytes": round(size / len(dataset) / 1000),
        "images_per_core_second": medians(per_core),
        "times_pil": medians(ratios),
        "images_per_second": medians(by_clock),
        "device_milliseconds": device_time(case, dataset),
        "megabytes_by_epoch": memory,
    }


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(found), 2) for name, found in values.items()}


def memory_by_epoch(batches: Iterator[Any], count: int) -> list[int]:
    """Returns the most megabytes in use during each of three epochs (Linux)."""
    page = os.sysconf("SC_PAGE_SIZE")
    most = []
    for _ in range(3):
        in_use = 0
        for _ in itertools.islice(batches, count // _BATCH):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            in_use = max(in_use, pages * page // 10**6)
        most.append(in_use)
    batches.close()
    return most


def device_time(case: Case, dataset: CountingDataset) -> float:
    """Returns the milliseconds an image that making the crop takes on the device."""
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
        f"{case.name}, {result['kilobytes']} kB a record, "
        f"base {case.augmentation.base_size}, crop {case.augmentation.crop_size}: "
        f"{result['images']} images",
        f"  {'':8}{'images/s a core':>16}{'times PIL':>11}{'images/s':>10}",
    ]
    keys = "images_per_core_second", "times_pil", "images_per_second"
    for name in _WAYS:
        rates = (result[key][name] for key in keys)
        lines.append("  {:8}{:16.1f}{:11.2f}{:10.1f}".format(name, *rates))
    lines.append(
        f"  the device's part: {result['device_milliseconds']} ms an image on "
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
