"""The files of predict.py: images found, label maps and class probabilities written."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from encnet_jax.data.file_pairs import is_image
from encnet_jax.errors import UserError
from encnet_jax.predict.predictor import Classifier, Segmenter

_PRINTED_CLASSES = 3  # per image
_Result = TypeVar("_Result")


def find_images(arguments: Sequence[str]) -> list[Path]:
    """Returns the image files that files, folders and globs name, each once.

    Folders and globs stand for those of their files that `is_image`.

    Raises:
        UserError: An argument that matches no file.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if is_image(p) and p.is_file())
        elif path.exists():
            files = [path]
        else:
            parent = Path(path.anchor or ".")
            pattern = str(path.relative_to(path.anchor) if path.anchor else path)
            matches = parent.glob(pattern)
            files = sorted(p for p in matches if is_image(p) and p.is_file())
        if not files:
            raise UserError(f"{argument}: no such image, or a folder without images")
        found.extend(files)
    return list(dict.fromkeys(found))


def write_predictions(
    segmenter: Segmenter, images: Sequence[Path], output: Path
) -> list[Path]:
    """Writes `NAME.png` and `NAME-overlay.png` for each image.

    Images of the same name are told apart by their suffix or their folder.

    Returns:
        The images that could not be read; each is reported on standard error.
    """
    output.mkdir(parents=True, exist_ok=True)
    failed: list[Path] = []
    for path, name, result in _predict_each(segmenter, images, failed):
        result.palette().save(output / f"{name}.png")
        result.overlay().save(output / f"{name}-overlay.png")
        shares = np.bincount(result.labels.ravel(), minlength=1) / result.labels.size
        print(
            f"{path} -> {output / name}.png "
            f"({_largest(zip(result.class_names, shares.tolist()))})"
        )
    return failed


def write_classes(
    classifier: Classifier, images: Sequence[Path], output: Path
) -> list[Path]:
    """Writes `classes.json`, the class and the probabilities of each image.

    Returns:
        The images that could not be read; each is reported on standard error.
    """
    output.mkdir(parents=True, exist_ok=True)
    failed: list[Path] = []
    written = {}
    for path, name, result in _predict_each(classifier, images, failed):
        probabilities = dict(zip(result.class_names, result.probabilities.tolist()))
        written[name] = {
            "file": str(path),
            "class": result.class_names[result.label],
            "probabilities": probabilities,
        }
        print(f"{path}: {_largest(probabilities.items())}")
    (output / "classes.json").write_text(json.dumps(written, indent=2) + "\n")
    return failed


def _predict_each(
    predict: Callable[[Path], _Result], images: Sequence[Path], failed: list[Path]
) -> Iterator[tuple[Path, str, _Result]]:
    """Yields each image with a name for its files and its result.

    Images that cannot be read are reported and appended to `failed`.
    """
    for path, name in zip(images, _distinct_names(images)):
        try:
            result = predict(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append(path)
        else:
            yield path, name, result


def _largest(shares: Iterable[tuple[str, float]]) -> str:
    """Returns the names of the largest shares in percent; zeros are left out."""
    ordered = sorted(shares, key=lambda item: -item[1])[:_PRINTED_CLASSES]
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered if share)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Returns a file name for each path, with suffix or folder where needed."""
    for name_of in (
        lambda p: p.stem,
        lambda p: p.name,
        lambda p: "_".join(p.parts[-2:]),
    ):
        names = [name_of(path) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{index:06d}_{path.stem}" for index, path in enumerate(paths)]
