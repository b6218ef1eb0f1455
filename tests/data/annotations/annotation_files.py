"""Small annotation files of COCO and labelme, and their import."""

import json

import numpy as np
import pytest
from PIL import Image

from encnet_jax.commands import data_import
from encnet_jax.data.registry import open_dataset
from tests.parsed_flags import run_command

H, W = 8, 10
CATEGORIES = [{"id": 7, "name": "leaf"}, {"id": 3, "name": "stem"}]


def polygon(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def save_image(path, size=(W, H), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 50, 20)).save(path)
    return path


def annotation(identity, image, category, segmentation, **more):
    keys = dict(id=identity, image_id=image, category_id=category)
    return {**keys, "segmentation": segmentation, **more}


def coco(*names):
    """Returns a COCO file of one image a name, each with the same annotations."""
    rle = {"size": [H, W], "counts": [0, H, H * W - H]}  # the first column
    return {
        "images": [
            {"id": 10 + i, "file_name": name, "height": H, "width": W}
            for i, name in enumerate(names)
        ],
        "annotations": [
            item
            for i in range(len(names))
            for item in (
                annotation(3 * i, 10 + i, 7, [polygon(0, 2, 6, 6)]),
                annotation(3 * i + 1, 10 + i, 3, [polygon(4, 4, 8, 8)]),
                annotation(3 * i + 2, 10 + i, 3, rle, iscrowd=1),
            )
        ],
        "categories": CATEGORIES,
    }


def expected_labels(background=0, stem=1, leaf=2):
    labels = np.full((H, W), background)
    labels[2:6, 0:6] = leaf
    labels[4:8, 4:8] = stem  # later in the file
    labels[:, 0] = stem
    return labels


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def data_import_of(monkeypatch, source, output, kind="coco", **flags):
    if kind == "coco":
        pytest.importorskip("pycocotools")
    given = dict(format=kind, output=output, **flags)
    return run_command(monkeypatch, data_import, source, **given)


def labels_of(root, split="train", index=0):
    return open_dataset("folder", split, str(root))[index].labels


def listed(capsys):
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("error: ") for line in lines if line[:6] == "error:"]


def labelme(image, *shapes, **more):
    keys = dict(imagePath=image, imageHeight=H, imageWidth=W, imageData=None)
    listed = [
        {"label": label, "shape_type": "rectangle", "points": points}
        for label, points in shapes
    ]
    return {**keys, "shapes": listed, **more}


SHAPES = (
    ("tree", [[0, 0], [5, 5]]),
    ("car", [[4, 4], [8, 7]]),
    ("__ignore__", [[0, 0], [0, 7]]),
    ("_background_", [[2, 2], [2, 3]]),
)


def labelme_labels(background=0, car=1, tree=2):
    labels = np.full((H, W), background)
    labels[0:6, 0:6] = tree
    labels[4:8, 4:9] = car
    labels[:, 0] = 255
    labels[2:4, 2] = background
    return labels
