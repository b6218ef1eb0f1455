"""Image and label files in a folder."""

import bisect
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from encnet_jax.data.image_io import is_raster
from encnet_jax.data.result_file import is_result
from encnet_jax.errors import UserError

FilePair = tuple[Path, Path]  # image, labels
# Folders that file systems have at their root, not to be read by users.
_SYSTEM = ("lost+found", "System Volume Information", "$RECYCLE.BIN")


def is_image(path: Path) -> bool:
    """Returns whether a file name is that of a raster image that Pillow reads.

    Hidden files are none, such as `._a.jpg`, in which macOS stores attributes.
    """
    if path.name.startswith("."):
        return False
    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    return is_raster(kind)


def pair_files(
    images: Path, labels: Path, label_suffix: str | None = None
) -> tuple[list[FilePair], list[str]]:
    """Pairs images with label files of the same relative path.

    Label files end in `.png`, images in any suffix of a raster image that Pillow reads.
    Hidden files are skipped.

    Args:
        images: Folder of the images.
        labels: Folder of the label files.
        label_suffix: What the names of label files add to those of images, such as
            `_mask`; other label files are skipped. None: nothing, and the layout has no
            such setting.

    Returns:
        The pairs, sorted by path, and one line for each file without a counterpart.

    Raises:
        UserError: A folder is missing, or contains no images.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    files = [path for path in files_below(images) if is_image(path)]
    if not files:
        raise UserError(f"{images}: no images (.jpg, .png, ...) in it")
    label_files = LabelFiles(labels, label_suffix)
    pairs: dict[str, FilePair] = {}
    problems: list[str | Path] = []  # a path: the image of a missing label file
    for path in files:
        key = _key(path.relative_to(images).with_suffix(""))
        if key in pairs:
            problems.append(
                f"{path} and {pairs[key][0]}: two images for one label file"
            )
        elif label := label_files.take(key):
            pairs[key] = (path, label)
            problems += label_files.duplicates(key)
        else:
            problems.append(path)
    lines = label_files.report(problems, images)
    lines += [
        f"{path}: a label file without an image"
        for path in label_files.left
        if not is_result(path)  # the overlay of a prediction
    ]
    return list(pairs.values()), lines


def pair_listed(
    listing: Path,
    lines: Iterable[str],
    images: Path,
    labels: Path,
    label_suffix: str | None = None,
) -> tuple[list[FilePair], list[str]]:
    r"""Pairs the images listed in a file with their labels, as `pair_files`.

    A line is an image, with or without suffix, and after white space optionally its
    label file. Both may be written with `\`, and with folders that end in the name of
    `images` or `labels` in front: `images\a\b.jpg`.
    """
    by_key: dict[str, list[Path]] = {}
    by_full_name: dict[str, list[Path]] = {}
    # A file that is listed and not found is named anyway.
    files = [path for path in files_below(images, all_needed=False) if is_image(path)]
    for path in files:
        relative = path.relative_to(images)
        by_key.setdefault(_key(relative.with_suffix("")), []).append(path)
        by_full_name.setdefault(_key(relative), []).append(path)
    by_key |= by_full_name  # which comes first: `a.jpg` is not `a.jpg.jpg`
    label_files = LabelFiles(labels, label_suffix, all_needed=False)
    pairs: dict[Path, FilePair] = {}
    by_stem: dict[str, Path] = {}  # the images that have taken a label file
    problems: list[str | Path] = []
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found, label_entry = _find_listed(
            line.strip(), by_key, images.name, label_files
        )
        where = f"{listing} line {line_number}: {PurePosixPath(line.strip())}"
        if len(found) != 1:
            reason = "no such image"
            if found:
                reason = f"{found[0].name} or {found[1].name}"
            elif near := by_key.get(os.path.splitext(_key(Path(line.strip())))[0]):
                reason = f"{near[0].name}, but not that image, is"
            problems.append(f"{where}: {reason} in {images}")
            continue
        image, key = found[0], _key(found[0].relative_to(images).with_suffix(""))
        if image in pairs:
            problems.append(f"{where}: listed twice")
        elif label_entry:
            if label := label_files.listed(label_entry):
                pairs[image] = (image, label)
            else:
                problems.append(f"{where}: no such label file (.png) in {labels}")
        elif label := label_files.take(key):
            pairs[image] = (image, label)
            by_stem[key] = image
            problems += label_files.duplicates(key)
        elif key in by_stem:
            problems.append(
                f"{image} and {by_stem[key]}: two images for one label file"
            )
        else:
            problems.append(image)
    if not pairs and not problems:
        raise UserError(f"{listing}: empty; it should list images, one per line")
    return list(pairs.values()), label_files.report(problems, images)


class LabelFiles:
    """The label files below a folder, by the images that they belong to.

    Args:
        folder: The folder.
        suffix: See `pair_files`.
        all_needed: See `files_below`.
    """

    def __init__(self, folder: Path, suffix: str | None, *, all_needed: bool = True):
        self.folder = folder
        self.suffix = suffix
        files = files_below(folder, all_needed=all_needed)
        self._files = {_key(path.relative_to(folder)): path for path in files}
        self._by_image: dict[str, list[Path]] = {}
        end = _normalize(suffix or "")
        for key, path in self._files.items():
            stem, extension = os.path.splitext(key)
            if extension.lower() == ".png" and stem.endswith(end):
                self._by_image.setdefault(stem.removesuffix(end), []).append(path)
        self._left = {key: paths[0] for key, paths in self._by_image.items()}

    @property
    def left(self) -> list[Path]:
        """The files that were neither taken nor reported as the nearest ones."""
        return list(self._left.values())

    def take(self, key: str) -> Path | None:
        """Returns the label file of an image, given the key of its relative path."""
        return self._left.pop(key, None)

    def duplicates(self, key: str) -> list[str]:
        """Returns one line for each further label file of an image."""
        first, *others = self._by_image[key]
        return [f"{path} and {first}: two label files for one image" for path in others]

    def listed(self, entry: str) -> Path | None:
        """Returns the PNG file that a list names, with or without folders in front."""
        for key in _spellings(entry, self.folder.name):
            path = self._files.get(key)
            if path is not None and path.suffix.lower() == ".png":
                return path
        return None

    def report(self, problems: Iterable[str | Path], images: Path) -> list[str]:
        """Replaces images without labels by lines that name the nearest label file.

        To be called once all others are taken: the nearest is one of those left.
        """
        names = sorted(self._files)
        unlike_case = {key.casefold(): key for key in self._left}
        lines = []
        for item in problems:
            if isinstance(item, Path):
                stem = item.relative_to(images).with_suffix("")
                name = stem.with_name(f"{stem.name}{self.suffix or ''}.png")
                hint = self._hint(_key(stem), names, unlike_case)
                item = f"{self.folder / name}: missing, the label file of {item}{hint}"
            lines.append(item)
        return lines

    def _hint(self, key: str, names: list[str], unlike_case: dict[str, str]) -> str:
        """Returns what to add to the report of a missing label file."""
        if other := unlike_case.get(key.casefold()):
            if other in self._left:
                path = self._left.pop(other)
                return f"; {path} is there, in other upper and lower case"
        for index in range(bisect.bisect_left(names, key), len(names)):
            name = names[index]
            if not name.startswith(key):
                break
            stem, extension = os.path.splitext(name)
            rest, path = stem.removeprefix(key), self._files[name]
            if extension.lower() != ".png":
                if rest == _normalize(self.suffix or ""):
                    return f"; {path} is there, but label files must be PNG"
            elif "/" in rest or rest[:1].isdigit():  # a10.png is not of a1.jpg
                continue
            elif rest[:1].isalpha() and not key[-1:].isdigit():  # cats.png of cat.jpg
                continue
            elif stem in self._left or (self.suffix and not self._by_image):
                self._left.pop(stem, None)
                if self.suffix is None:
                    return f"; {path} is there, but must have the name of the image"
                return (
                    f'; {path} is there: set "label_suffix": "{rest}" in classes.json'
                )
        return ""


def _find_listed(
    line: str, by_key: dict[str, list[Path]], folder: str, label_files: LabelFiles
) -> tuple[list[Path], str]:
    """Returns the images that a line of a list may mean, and the label file it names.

    Names may contain spaces: the whole line is tried first, then every gap, of which
    the first with an image and a label file is taken, or else the first with an image.
    """
    best: tuple[list[Path], str] = [], ""
    columns = [(line, "")]
    for gap in re.finditer(r"\s+", line):
        columns.append((line[: gap.start()], line[gap.end() :]))
    for image, label in columns:
        found = next((k for k in _spellings(image, folder) if k in by_key), None)
        if found is None:
            continue
        if not label or label_files.listed(label):
            return by_key[found], label
        best = best if best[0] else (by_key[found], label)
    return best


def _spellings(entry: str, folder: str) -> list[str]:
    """Returns the keys that a path in a list may stand for, the likeliest first."""
    keys = []
    for path in (entry, entry.replace("\\", "/")):
        parts = PurePosixPath(path).parts
        keys.append(_key(PurePosixPath(*parts)))
        for index, part in enumerate(parts):
            if part == folder:
                keys.append(_key(PurePosixPath(*parts[index + 1 :])))
    return keys


def _key(path: Path | PurePosixPath) -> str:
    """Returns a relative path in the Unicode form in which paths are compared.

    Names in archives made on macOS are decomposed: `é` is an `e` and an accent.
    """
    return _normalize(path.as_posix())


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def files_below(folder: Path, *, all_needed: bool = True) -> list[Path]:
    """Returns all files below a folder, sorted, except hidden ones.

    Links are followed, but not back to a folder on the way to them.

    Args:
        folder: The folder.
        all_needed: Whether a folder that cannot be read is an error: its files would be
            missing without a word.

    Raises:
        UserError: A folder cannot be read.
    """
    onerror = _refuse if all_needed else None
    found: list[Path] = []
    ways: dict[str, tuple[Path, ...]] = {os.fspath(folder): ()}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=onerror):
        way = (*ways.pop(parent), Path(os.path.realpath(parent)))
        shown = [x for x in folders if not x.startswith(".") and x not in _SYSTEM]
        paths = [os.path.join(parent, name) for name in shown]
        paths = [path for path in paths if not _leads_back(path, way)]
        ways |= dict.fromkeys(paths, way)
        folders[:] = map(os.path.basename, paths)
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _refuse(error: OSError) -> None:
    """Raises `UserError` for a folder that is there but cannot be read."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        reason = f"{error.filename}: cannot be read: {error.strerror}"
        raise UserError(reason) from error


def _leads_back(path: str, way: Sequence[Path]) -> bool:
    """Returns whether a path is a link to a folder of `way`, or to one around it."""
    if not os.path.islink(path):
        return False
    target = Path(os.path.realpath(path))
    return any(target in (folder, *folder.parents) for folder in way)
