"""Memory and time of `encnet predict --slide` on one large TIFF, with a small network.

python -m benchmarks.large_image [--size=20000] [--classes=19] [--folder=DIR]

The image, its labels, and the network are written to DIR, by default temporary.
Prints one line of JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
from flax import nnx

from encnet_jax import Segmenter, create_model
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.inference.tta import PyTorchEncodingProtocol

TILE = 512
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def write_image(path: Path, size: int) -> None:
    """Writes noise of many scales as a tiled, compressed TIFF."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (TILE // 16, TILE // 16, 3)).repeat(16, 0)
    tile = coarse.repeat(16, 1) + rng.integers(0, 56, (TILE, TILE, 3))
    tile = tile.astype(np.uint8)
    count = (-(-size // TILE)) ** 2
    tifffile.imwrite(
        path,
        (np.roll(tile, 37 * index, 0) for index in range(count)),
        shape=(size, size, 3),
        dtype=np.uint8,
        photometric="rgb",
        tile=(TILE, TILE),
        compression="zlib",
        bigtiff=True,
    )


def write_model(folder: Path, classes: int) -> None:
    settings = dict(name="encnet", backbone="tiny", stem="plain", width=4)
    settings |= dict(head_channels=8, num_codes=2)
    model = create_model(num_classes=classes, rngs=nnx.Rngs(0), **settings)
    names = tuple(f"class {index}" for index in range(classes))
    info = DatasetInfo("large", names, voc_colormap(classes), {}, mean=MEAN, std=STD)
    corners = model.align_corners
    protocol = PyTorchEncodingProtocol(512, 512, (1.0,), False, 0, corners, MEAN, STD)
    segmenter = Segmenter(model, info, 512, corners, protocol, settings=settings)
    segmenter.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / "large.tif", arguments.size)
        write_model(folder / "model", arguments.classes)
        command = [sys.executable, "-m", "encnet_jax", "predict", "--slide"]
        command += ["--base_size=0", f"--workdir={folder / 'model'}"]
        command += [f"--output={folder / 'labels'}", str(folder / "large.tif")]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        record = {
            "size": arguments.size,
            "classes": arguments.classes,
            "peak_gib": round(peak / 2**20, 2),
            "seconds": round(seconds),
            "image_mib": (folder / "large.tif").stat().st_size >> 20,
            "labels_mib": (folder / "labels" / "large.tif").stat().st_size >> 20,
        }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
