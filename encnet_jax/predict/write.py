"""The files of predict.py: images found, label maps and class probabilities written."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from jaxtyping import Float

from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.result_file import save_arrays, save_result
from encnet_jax.errors import UserError
from encnet_jax.files import check_folder, make_folder, whole_file
from encnet_jax.predict.output_plan import (
    OutputPlan,
    PlannedImage,
    distinct_names,
    plan_outputs,
)
from encnet_jax.predict.predictor import Classifier, Segmentation, Segmenter
from encnet_jax.run.mean_gate import MeanGate
from encnet_jax.visualize.overlay import label_image

if TYPE_CHECKING:
    from encnet_jax.explain.explanation import Explanation

_CLASSES_FILE = "classes.json"
_CLASS_KEYS = {"file", "class", "probabilities"}
_PRINTED_CLASSES = 3  # per image
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


def _save_labels(
    result: Segmentation, info: DatasetInfo, source: Path, file: BinaryIO
) -> None:
    save_result(label_image(result.labels, info), file, source)


def _save_overlay(
    result: Segmentation, info: DatasetInfo, source: Path, file: BinaryIO
) -> None:
    save_result(result.overlay(), file, source)


def _save_probabilities(
    result: Segmentation, info: DatasetInfo, source: Path, file: BinaryIO
) -> None:
    arrays = {
        "probabilities": result.probabilities.astype(np.float16),
        "class_names": np.array(result.class_names),
    }
    save_arrays(arrays, file, source)


# Kinds of result: how the name of their file ends, and what writes it.
_SAVERS: dict[
    str, tuple[str, Callable[[Segmentation, DatasetInfo, Path, BinaryIO], None]]
] = {
    "labels": (".png", _save_labels),
    "probabilities": ("-probabilities.npz", _save_probabilities),
    "overlay": ("-overlay.png", _save_overlay),
}
DEFAULT_KINDS = ("labels", "overlay")
_EXPLANATION = "-explain.png"


def parse_kinds(values: Sequence[str]) -> tuple[str, ...]:
    """Returns the kinds of result that `--save` names, each once, in a fixed order.

    Raises:
        UserError: None, or an unknown one.
    """
    unknown = [value for value in values if value not in _SAVERS]
    if unknown or not values:
        given = ",".join(values)
        raise UserError(f"--save={given}: allowed are {', '.join(_SAVERS)}")
    return tuple(kind for kind in _SAVERS if kind in values)


def plan_predictions(
    images: Sequence[Path],
    output: Path,
    explain: bool = False,
    kinds: Sequence[str] = DEFAULT_KINDS,
) -> OutputPlan:
    """Returns the files of all images, having created nothing.

    Args:
        images: The image files, each once.
        output: The output folder.
        explain: Whether each image gets `NAME-explain.png` as well.
        kinds: What `parse_kinds` returned.

    Raises:
        UserError: The output folder cannot be written to, or what `plan_outputs`
            refuses.
    """
    check_folder(output, "--output")
    endings = [_SAVERS[kind][0] for kind in kinds]
    return plan_outputs(images, output, endings + [_EXPLANATION] * explain)


def write_predictions(
    segmenter: Segmenter,
    plan: OutputPlan,
    output: Path,
    reference: MeanGate | None = None,
    kinds: Sequence[str] = DEFAULT_KINDS,
) -> int:
    """Writes the results of each image.

    `NAME.png` holds labels as the data set's label files do, see `label_image`;
    `NAME-probabilities.npz` the probabilities, float16 (h, w, n), and the class names.

    Args:
        segmenter: Predicts the images.
        plan: The files.
        output: The output folder.
        reference: The mean gate by which the images are explained, if the plan has
            files for that.
        kinds: Those of the plan.

    Returns:
        How many images failed; each is reported on standard error.

    Raises:
        UserError: A file cannot be written.
    """
    make_folder(output, "--output")
    failed = list(plan.problems)

    def predict(path: Path) -> tuple[Segmentation, "Explanation | None"]:
        if reference is None:
            return segmenter(path), None
        explanation = segmenter.explain(path, reference)
        return explanation.segmentation, explanation

    for image, (result, explanation) in predict_each(predict, plan.images, failed):
        for path, kind in zip(image.outputs, kinds):
            with writing(path) as file:
                _SAVERS[kind][1](result, segmenter.info, image.path, file)
        if explanation is not None:
            with writing(image.outputs[-1]) as file:
                save_result(explanation.figure(), file, image.path)
        shares = np.bincount(result.labels.ravel(), minlength=1) / result.labels.size
        print_result(image, result.class_names, shares)
    return len(failed)


def plan_classes(images: Sequence[Path], output: Path) -> OutputPlan:
    """Returns the names of all images in `classes.json`, having created nothing.

    Raises:
        UserError: The output folder cannot be written to, or its `classes.json` is not
            a result of predict or holds another image of one of these names.
    """
    check_folder(output, "--output")
    earlier = _read_classes(output / _CLASSES_FILE)
    names = distinct_names(images, [""])
    for path, name in zip(images, names):
        if name in earlier and Path(earlier[name]["file"]).resolve() != path.resolve():
            raise UserError(
                f"{output / _CLASSES_FILE}: {name!r} is another image, "
                f"{earlier[name]['file']}; choose another --output"
            )
    return OutputPlan([PlannedImage(*item) for item in zip(images, names)], [])


def write_classes(classifier: Classifier, plan: OutputPlan, output: Path) -> int:
    """Writes `classes.json`, the class and the probabilities of each image.

    Results of other images that are in the file stay there. Where it is interrupted,
    those found so far are written.

    Returns:
        How many images failed; each is reported on standard error.

    Raises:
        UserError: The file cannot be written.
    """
    make_folder(output, "--output")
    failed = list(plan.problems)
    found: dict[str, Any] = {}
    try:
        for image, result in predict_each(classifier, plan.images, failed):
            probabilities = dict(zip(result.class_names, result.probabilities.tolist()))
            found[image.name] = {
                "file": os.path.abspath(image.path),
                "class": result.class_names[result.label],
                "probabilities": probabilities,
            }
            print(f"{image.path}: {_largest_shares(probabilities.items())}")
    except BaseException:
        with contextlib.suppress(UserError):
            _add_classes(output / _CLASSES_FILE, found)
        raise
    _add_classes(output / _CLASSES_FILE, found)
    return len(failed)


def _add_classes(path: Path, found: dict[str, Any]) -> None:
    """Adds results to a file, which another command may have written meanwhile."""
    results = _read_classes(path) | found
    with writing(path) as file:
        file.write((json.dumps(results, indent=2) + "\n").encode())


def _read_classes(path: Path) -> dict[str, Any]:
    """Returns what `write_classes` wrote; raises `UserError` for another file."""
    try:
        results = json.loads(path.read_text())
        if all(entry.keys() == _CLASS_KEYS for entry in results.values()):
            return results
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    raise UserError(
        f"{path}: exists, and is not a result of predict; choose another --output"
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file as `whole_file` does; raises `UserError` if it cannot be written."""
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def predict_each(
    predict: Callable[[Path], _Result],
    images: Sequence[PlannedImage],
    failed: list[str],
) -> Iterator[tuple[PlannedImage, _Result]]:
    """Yields each image with its result.

    Prints the messages in `failed`, and those of images that cannot be read, which are
    appended.
    """
    for message in failed:
        print(f"error: {message}", file=sys.stderr)
    for image in images:
        try:
            result = predict(image.path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append(str(error))
        else:
            yield image, result


def print_result(
    image: PlannedImage, class_names: Sequence[str], shares: Float[np.ndarray, " n"]
) -> None:
    """Prints where the labels of an image are, and its largest classes."""
    listed = _largest_shares(zip(class_names, shares.tolist()))
    print(f"{image.path} -> {image.outputs[0]} ({listed})")


def _largest_shares(shares: Iterable[tuple[str, float]]) -> str:
    """Returns the names of the largest shares in percent; zeros are left out."""
    ordered = sorted(shares, key=lambda item: -item[1])[:_PRINTED_CLASSES]
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered if share)
