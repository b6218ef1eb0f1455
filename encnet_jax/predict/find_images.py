"""The images that the arguments of `encnet predict` name."""

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from encnet_jax.data.file_pairs import is_image
from encnet_jax.data.result_file import is_result
from encnet_jax.errors import UserError
from encnet_jax.files import user_path

_log = logging.getLogger(__name__)


def find_images(arguments: Sequence[str]) -> list[Path]:
    """Returns the image files that files, folders and globs name, each once.

    Folders and globs stand for their image files (see `is_image`), including links to
    missing ones. Results of earlier predictions are left out, with a log line.

    Raises:
        UserError: An argument that matches no image.
    """
    found: dict[str, Path] = {}  # by absolute path
    results = 0
    for argument in arguments:
        try:
            files = _matching_files(argument)
        except UserError:
            raise
        except (OSError, ValueError) as error:  # such as a name that is too long
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{argument}: cannot be read: {reason}") from error
        if not files:
            raise UserError(f"{argument}: no such image, or a folder without images")
        images = [file for file in files if not is_result(file)]
        results += len(files) - len(images)
        found |= {os.path.abspath(image): image for image in images}
    if results:
        _log.info("%d files are results of predict: left out", results)
    if not found:
        raise UserError(f"{arguments[0]}: no images but results of predict")
    return list(found.values())


def _matching_files(argument: str) -> list[Path]:
    path = Path(argument)
    if not argument or not path.exists():  # names may start with ~ too
        path = user_path(argument)
    if path.is_dir():
        inside = [*path.iterdir()]
        if folders := sum(each.is_dir() for each in inside):
            _log.info(
                "%s: folders inside (%d) are not looked into; '%s' includes them",
                *(path, folders, Path(glob.escape(str(path))) / "**" / "*"),
            )
        return _image_files(inside)
    if path.exists():
        return [path]
    parent = Path(path.anchor or ".")
    pattern = str(path.relative_to(path.anchor) if path.anchor else path)
    return _image_files(parent.glob(pattern))


def _image_files(paths: Iterable[Path]) -> list[Path]:
    """Returns the images, sorted; with links to what is missing, which are errors."""
    return sorted(
        path
        for path in paths
        if is_image(path) and (path.is_file() or not path.exists())
    )
