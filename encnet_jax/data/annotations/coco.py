"""COCO annotation files: polygons and run-length encodings by category."""

import functools
from pathlib import Path
from typing import Any

from encnet_jax.data.annotations.annotated import (
    BACKGROUND,
    AnnotatedImage,
    AnnotatedSet,
    Mask,
    Region,
    class_name,
    output_name,
    split_of,
    stored_size,
)
from encnet_jax.data.annotations.image_search import ImageSearch
from encnet_jax.data.annotations.masks import polygon_mask, rle_mask
from encnet_jax.data.file_pairs import files_below
from encnet_jax.data.input_files import read_json
from encnet_jax.errors import UserError, require_package

_LISTS = ("images", "annotations", "categories")


def read_coco(source: Path, chosen: list[str] | None = None) -> AnnotatedSet:
    """Reads COCO files; their names, or folders, are the splits.

    Classes are the categories by name, ordered by id. In a folder with files
    `instances_*.json`, others (captions, keypoints) are not read.

    Args:
        source: A file, or a folder of files.
        chosen: Classes in order, in place of all categories.

    Raises:
        UserError: No annotation file, two of one split, contradictory categories, or
            pycocotools is not installed.
    """
    require_package("pycocotools", "polygons", "--format=coco")
    files, skipped = _find_files(source)
    notes = _drop_roots(files)
    root = source if source.is_dir() else source.parent
    splits: dict[str, Path] = {}
    by_id: dict[str, int] = {}
    for path, content in files.items():
        split = split_of(path, source) or ("train" if len(files) == 1 else path.stem)
        if split in splits:
            raise UserError(
                f"{path} and {splits[split]}: two files of split {split!r}; give one "
                "of them in place of the folder"
            )
        splits[split] = path
        for identity, name in _categories(content, path).items():
            by_id[name] = min(identity, by_id.get(name, identity))
    result = AnnotatedSet(
        chosen or sorted(by_id, key=by_id.__getitem__), [], [], skipped, notes
    )
    taken: dict[str, str] = {}
    for split, path in splits.items():
        names = [
            entry["file_name"]
            for entry in files[path]["images"]
            if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
        ]
        search = ImageSearch(path, split, root, names, taken)
        _read_file(files[path], path, split, search, result)
    return result


def _find_files(source: Path) -> tuple[dict[Path, Any], list[Path]]:
    """Returns the annotation files with their content, and other JSON files."""
    if source.is_file():
        paths = [source]
    elif source.is_dir():
        paths = [path for path in files_below(source) if path.suffix.lower() == ".json"]
    else:
        raise UserError(f"{source}: no such file or folder")
    instances = [path for path in paths if path.name.startswith("instances_")]
    paths = instances or paths
    files, skipped = {}, []
    for path in paths:
        content = read_json(path)
        if isinstance(content, dict) and all(
            isinstance(content.get(key), list) for key in _LISTS
        ):
            files[path] = content
        else:
            skipped.append(path)
    if not files:
        where = f"{source}: no" if source.is_dir() else f"{source}: not a"
        raise UserError(f"{where} COCO file, JSON with the lists {', '.join(_LISTS)}")
    return files, skipped


def _drop_roots(files: dict[Path, Any]) -> list[str]:
    """Removes the categories that Roboflow puts above the classes; returns a line each.

    Others name classes as supercategories too, and a split may lack a class. So all
    must be as Roboflow writes it: id 0, supercategory `none`, the supercategory of all
    other categories, and without an annotation in any file.
    """
    used = {
        str(entry.get("category_id"))
        for content in files.values()
        for entry in content["annotations"]
        if isinstance(entry, dict)
    }
    notes: dict[str, None] = {}  # one for all splits
    for content in files.values():
        entries = [item for item in content["categories"] if isinstance(item, dict)]
        above = [item.get("supercategory") for item in entries]
        for index, entry in enumerate(entries):
            name, others = entry.get("name"), above[:index] + above[index + 1 :]
            root = entry.get("id") == 0 and above[index] == "none" and "0" not in used
            if root and others and all(other == name for other in others):
                content["categories"].remove(entry)
                notes[
                    f"category 0 {name!r}: no class: without annotations, and the "
                    "supercategory of all others, as Roboflow adds it"
                ] = None
    return [*notes]


def _categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for index, entry in enumerate(content["categories"]):
        identity = entry.get("id") if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if type(identity) is not int or not isinstance(name, str) or not name.strip():
            raise UserError(
                f"{path}: categories[{index}]={entry!r}: must have an integer id and a "
                "name"
            )
        known = class_name(name) in found.values() and class_name(name) != BACKGROUND
        if identity in found or known:
            raise UserError(f"{path}: category {identity} {name!r} is given twice")
        found[identity] = class_name(name)
    return found


def _read_file(
    content: dict[str, Any],
    path: Path,
    split: str,
    search: ImageSearch,
    result: AnnotatedSet,
) -> None:
    """Adds the images of a file, their annotations, and the problems of both."""
    categories = _categories(content, path)
    images: dict[Any, AnnotatedImage] = {}
    for index, entry in enumerate(content["images"]):
        where = f"{path}: images[{index}]"
        try:
            identity = entry["id"]
            if identity in images:
                raise UserError(f"{where}: id {identity!r} is given twice")
            images[identity] = _image(entry, path, split, search)
        except UserError as error:
            result.problems.append(str(error))
        except (KeyError, TypeError):
            result.problems.append(f"{where}: must have id and file_name")
    images_by_text = {str(key): image for key, image in images.items()}
    categories_by_text = {str(key): name for key, name in categories.items()}
    for index, entry in enumerate(content["annotations"]):
        where = f"{path}: annotations[{index}]"
        try:
            identity = entry["image_id"]
            image = images.get(identity, images_by_text.get(str(identity)))
            where = f"annotation {entry.get('id', f'number {index}')}"
            if image is None:
                result.problems.append(
                    f"{path}: {where}: image_id {entry['image_id']!r}: no such image"
                )
                continue
            where = f"{image.where}, {where}"
            identity = entry["category_id"]
            name = categories.get(identity, categories_by_text.get(str(identity)))
        except (KeyError, TypeError, AttributeError):
            result.problems.append(f"{where}: must have image_id and category_id")
            continue
        if name is None or name not in (*result.class_names, BACKGROUND):
            known = f"category {entry['category_id']!r}" + (
                f" ({name})" if name else ""
            )
            result.problems.append(f"{where}: {known}: is none of the classes")
            continue
        draw = functools.partial(_draw, entry.get("segmentation"))
        image.regions.append(Region(where, name, draw))
    result.images.extend(images.values())


def _image(
    entry: dict[str, Any], path: Path, split: str, search: ImageSearch
) -> AnnotatedImage:
    stored = entry["file_name"]
    if not isinstance(stored, str) or not stored:
        raise TypeError
    where = f"{path}: image {stored}"
    size = stored_size(entry.get("height"), entry.get("width"), where)
    read = functools.partial(search.read, stored, where)
    return AnnotatedImage(where, split, output_name(stored), read, size, [])


def _draw(segmentation: Any, height: int, width: int) -> Mask:
    if isinstance(segmentation, dict):
        return rle_mask(segmentation, height, width)
    if isinstance(segmentation, list) and segmentation:
        if all(type(value) in (int, float) for value in segmentation):
            segmentation = [segmentation]  # one polygon, as VIA writes it
        return polygon_mask(segmentation, height, width)
    raise UserError("no segmentation: neither polygons nor RLE")
