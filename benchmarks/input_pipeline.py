"""The input pipeline beside a plain one by PIL: python -m benchmarks.input_pipeline.

    python -m benchmarks.input_pipeline [--images=N] [--repeats=R] [--json=FILE]

Draws pictures and labels with the statistics of photographs, stores them as the data
sets are stored (records of JPEG or PNG bytes), and makes training crops of them in four
ways, by turns, in one run:

- `PIL`: the steps of PyTorch-Encoding, one after the other in one process: decode,
  mirror, resize the whole picture, pad, crop, normalise in float32, stack the batch;
- `host`: our pipeline; normalising is left to the device, where it is part of the step;
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
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from PIL import Image, ImageOps

from encnet_jax import command
from encnet_jax.data.arrays import resized_batch
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.classes import ADE20K, CITYSCAPES, DatasetInfo
from encnet_jax.data.sources import RecordSource, label_table

_IMAGES = flags.DEFINE_integer("images", 64, "Of 683x512; a quarter of 2048x1024.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Turns of each way.")
_JSON = flags.DEFINE_string("json", None, "File for the results.")
_BATCH = 8
_WAYS = "PIL", "host", "device", "decode"


class Case(NamedTuple):
    """Pictures of one kind, and how crops are made of them."""

    name: str
    info: DatasetInfo
    size: tuple[int, int]
    stored: dict[str, Any]
    how: Augmentation
    canvas_size: int


# Crops as in configs/ade20k.py and configs/cityscapes.py. At this quality the small
# JPEGs have 50 kB; those of ADE20K have about 40.
_JPEG = dict(format="JPEG", quality=90)
_LARGE = CITYSCAPES, (1024, 2048)
CASES = (
    Case("683x512 JPEG", ADE20K, (512, 683), _JPEG, Augmentation(520, 480), 704),
    Case("2048x1024 JPEG", *_LARGE, _JPEG, Augmentation(2048, 768), 0),
    Case("2048x1024 PNG", *_LARGE, dict(format="PNG"), Augmentation(2048, 768), 0),
)


def main(arguments: list[str]) -> None:
    """Measures every case, prints each, and writes what was asked for."""
    command.no_arguments(arguments)
    results = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            count = _IMAGES.value // (1 if case.size[0] < 1000 else 4)
            source = make_source(case, max(count, _BATCH), Path(folder) / "records")
            results[case.name] = measure(case, source)
        print(report(case, results[case.name]), flush=True)
    if _JSON.value:
        written = {"machine": machine(), "repeats": _REPEATS.value, "cases": results}
        Path(_JSON.value).write_text(json.dumps(written, indent=2) + "\n")


# The pictures


def noise(rng: np.random.Generator, size: tuple[int, int], fall: float) -> np.ndarray:
    """Returns noise (3, h, w) whose amplitude falls with frequency; deviation 1."""
    height, width = size
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    shape = (3, *frequency.shape)
    spectrum = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    values = np.fft.irfft2(spectrum / frequency**fall, size)
    return values / values.std((1, 2), keepdims=True)


def draw(
    rng: np.random.Generator, size: tuple[int, int], values: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture as smooth as photographs, and labels in a dozen ragged blobs."""
    channels = np.array([[1, 0.25, 0.1], [1, 0, -0.1], [1, -0.2, 0.15]])
    image = 118 + 50 * np.einsum("ij,jhw->hwi", channels, noise(rng, size, 1.8))
    ragged = 10 * noise(rng, size, 1.6)
    blobs = rng.integers(6, 18)
    centers = rng.uniform(0, 1, (blobs, 2)) * size
    rows, columns = np.mgrid[: size[0], : size[1]] + ragged[:2]
    distances = [np.hypot(rows - y, columns - x) for y, x in centers]
    labels = rng.choice(values, blobs)[np.argmin(distances, axis=0)]
    return np.clip(image, 0, 255).astype(np.uint8), labels.astype(np.uint8)


def make_source(case: Case, count: int, path: Path) -> "CountingSource":
    """Writes pictures as a prepared data set has them, and opens it."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    values = [v for v, known in enumerate(label_table(case.info)[:255]) if known >= 0]

    def stored(array: np.ndarray, **settings: Any) -> tf.train.Feature:
        file = io.BytesIO()
        Image.fromarray(array).save(file, **settings)
        return feature(file.getvalue())

    def feature(data: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))

    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(count):
            image, labels = draw(rng, case.size, values)
            features = {
                "image": stored(image, **case.stored),
                "label": stored(labels, format="PNG"),
                "id": feature(f"{number}".encode()),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    split = SimpleNamespace(filepaths=[path])
    return CountingSource(
        case.info, SimpleNamespace(info=SimpleNamespace(splits={"train": split})), "train"
    )


class CountingSource(RecordSource):
    """Knows how many examples were read."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.reads = itertools.count()

    def encoded(
        self, number: int, *, published: bool = False
    ) -> tuple[bytes, np.ndarray]:
        """Reads an example."""
        next(self.reads)
        return super().encoded(number, published=published)


# The ways


def decode(source: RecordSource, number: int) -> tuple[Image.Image, Image.Image]:
    """Returns an image and its labels, whole."""
    fields = source.records.features(number)
    image = Image.open(io.BytesIO(fields["image"])).convert("RGB")
    labels = Image.open(io.BytesIO(fields["label"]))
    labels.load()
    return image, labels


def pil_example(
    case: Case, source: RecordSource, table: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Does what PyTorch-Encoding does, in its order."""
    image, labels = decode(source, number)
    crop, rng = case.how.crop_size, np.random.default_rng(number)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        labels = labels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = rng.uniform(*case.how.scale_range) * case.how.base_size / max(image.size)
    width, height = (round(length * scale) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    labels = labels.resize((width, height), Image.Resampling.NEAREST)
    if min(width, height) < crop:
        border = 0, 0, max(crop - width, 0), max(crop - height, 0)
        image = ImageOps.expand(image, border, fill=0)
        labels = ImageOps.expand(labels, border, fill=0)
    left, top = (rng.integers(length - crop + 1) for length in image.size)
    box = left, top, left + crop, top + crop
    pixels = np.asarray(image.crop(box), np.float32)
    mean, std = np.float32(case.info.mean), np.float32(case.info.std)
    return (pixels / 255 - mean) / std, table[np.asarray(labels.crop(box))]


def our_batches(
    case: Case, source: RecordSource, canvas_size: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Returns our batches; without a size of canvas, those of finished crops."""
    from encnet_jax.data.pipeline import train_batches

    return train_batches(
        source, case.how, batch_size=_BATCH, seed=0, canvas_size=canvas_size
    )


def run_ours(
    case: Case, source: CountingSource, canvas_size: int | None = None
) -> int:
    """Makes an epoch; returns the number of examples, with those begun ahead."""
    before = next(source.reads)
    batches = our_batches(case, source, canvas_size)
    for _ in itertools.islice(batches, len(source) // _BATCH):
        pass
    batches.close()  # waits for those begun
    return next(source.reads) - before - 1


def run_pil(case: Case, source: RecordSource) -> int:
    """Makes an epoch of batches by PIL; returns the number of examples."""
    table = label_table(case.info).astype(np.int64)
    for first in range(0, len(source), _BATCH):
        numbers = range(first, min(first + _BATCH, len(source)))
        examples = [pil_example(case, source, table, number) for number in numbers]
        for part in zip(*examples):
            np.stack(part)
    return len(source)


def run_decode(source: RecordSource) -> int:
    """Decodes every example; returns their number."""
    for number in range(len(source)):
        decode(source, number)
    return len(source)


# Measuring


def measure(case: Case, source: CountingSource) -> dict[str, Any]:
    """Returns memory, rates, and ratios to the rate of PIL."""
    records = [source.records[number] for number in range(len(source))]
    ways: dict[str, Callable[[], int]] = {
        "PIL": functools.partial(run_pil, case, source),
        "host": functools.partial(run_ours, case, source),
        "device": functools.partial(run_ours, case, source, case.canvas_size),
        "decode": functools.partial(run_decode, source),
    }
    memory = {
        "host": memory_by_epoch(our_batches(case, source), len(source)),
        "device": memory_by_epoch(
            our_batches(case, source, case.canvas_size), len(source)
        ),
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
        name: [ours / pil for ours, pil in zip(per_core[name], per_core["PIL"])]
        for name in _WAYS
    }
    return {
        "images": len(source),
        "kilobytes": round(sum(map(len, records)) / len(records) / 1000),
        "images_per_core_second": medians(per_core),
        "images_per_second": medians(by_clock),
        "times_pil": medians(ratios),
        "device_milliseconds": device_time(case, source),
        "megabytes_by_epoch": memory,
    }


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(found), 2) for name, found in values.items()}


def memory_by_epoch(batches: Iterator[Any], count: int) -> list[int]:
    """Returns the most memory in use during each of three epochs."""
    most = []
    for _ in range(3):
        steps = itertools.islice(batches, count // _BATCH)
        most.append(max(memory_in_use() for _ in steps))
    batches.close()
    return most


def memory_in_use() -> int:
    """Returns the megabytes that this process has in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 10**6


def device_time(case: Case, source: RecordSource) -> float:
    """Returns the milliseconds an image that making the crop takes on the device."""
    batches = our_batches(case, source, case.canvas_size)
    batch = jax.device_put(next(batches))
    batches.close()
    resize = jax.jit(functools.partial(resized_batch, how=case.how))
    jax.block_until_ready(resize(batch))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(resize(batch))
        times.append(1000 * (time.perf_counter() - start) / _BATCH)
    return round(statistics.median(times), 3)


def report(case: Case, result: dict[str, Any]) -> str:
    lines = [
        f"{case.name}, {result['kilobytes']} kB a record, base {case.how.base_size}, "
        f"crop {case.how.crop_size}: {result['images']} images",
        f"  {'':8}{'images/s a core':>16}{'times PIL':>11}{'images/s':>10}",
    ]
    for name in _WAYS:
        rates = (
            result[key][name]
            for key in ("images_per_core_second", "times_pil", "images_per_second")
        )
        lines.append("  {:8}{:16.1f}{:11.2f}{:10.1f}".format(name, *rates))
    lines.append(
        f"  the device's part: {result['device_milliseconds']} ms an image on "
        f"{jax.devices()[0].device_kind}"
    )
    lines.append(f"  MB in use, epoch 1 to 3: {result['megabytes_by_epoch']}")
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
    command.run(main)
