"""Labels in bounded memory: those of the same windows in memory, block by block."""

import jax
import numpy as np
import pytest

from encnet_jax.inference.folding import fold_model
from encnet_jax.inference.large_image import blocks, make_large_label_fn
from encnet_jax.inference.sliding_window import make_score_fn
from encnet_jax.inference.tta import MmsegProtocol, PyTorchEncodingProtocol
from encnet_jax.models import create_model
from encnet_jax.run.sharding import mesh_of
from tests.random_module import random_module
from tests.small_workdir import MEAN, STD, TINY

IMAGE = np.random.default_rng(0).integers(0, 256, (300, 530, 3), np.uint8)
TILE_BYTES = 256 * 256 * 4 * 4  # of four classes


class ReadInParts:
    """An image of which no part of more than so many pixels is read."""

    shape, dtype = IMAGE.shape, IMAGE.dtype

    def __init__(self, limit):
        self.limit = limit

    def __getitem__(self, key):
        part = IMAGE[key]
        assert part.shape[0] * part.shape[1] <= self.limit
        return part


def protocol(kind, base_size, scales=(1.0,), flip=False, corners=False):
    return kind(base_size, 96, scales, flip, 0, corners, MEAN, STD)


@pytest.fixture(scope="module")
def network():
    model = random_module(create_model, name="encnet", num_classes=4, **TINY)
    model.eval()
    model_def, *arrays = fold_model(model)
    return model_def, arrays


@pytest.mark.parametrize("score_bytes", [1 << 30, 4 * TILE_BYTES, 1])
@pytest.mark.parametrize(
    "settings",
    [
        protocol(PyTorchEncodingProtocol, 530),  # padded at the lower and right border
        protocol(PyTorchEncodingProtocol, 120, (1.0, 1.5), True, True),
        protocol(PyTorchEncodingProtocol, 800),
        protocol(MmsegProtocol, 0),
        protocol(MmsegProtocol, 400, (1.0, 0.7), True),
    ],
    ids=["own size", "scales", "enlarged", "mmseg", "mmseg scales"],
)
def test_labels_are_those_of_the_evaluation(network, settings, score_bytes):
    model_def, arrays = network
    scores_of = make_score_fn(model_def, 4, settings, mesh_of(jax.local_devices()[:1]))
    (scores,) = scores_of(*arrays, [(0, IMAGE)], 1)
    expected = scores.score_map.labels().fetch()
    assert len(np.unique(expected)) > 1

    label = make_large_label_fn(model_def, 4, settings, score_bytes)
    labels = np.full(IMAGE.shape[:2], 99, np.uint8)
    for box, part in label(*arrays, ReadInParts(193**2), settings):
        assert (labels[box] == 99).all()  # each part once
        labels[box] = part
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("tiles", "scales", "expected"),
    [
        # A window of 96 pixels lies in up to two rows of tiles.
        (1000, (1.0,), [(0, 40, 0, 80)]),
        (80, (1.0,), [(0, 40, k, k + 40) for k in (0, 40)]),
        (1, (1.0,), [(i, i + 1, j, j + 1) for i in range(40) for j in range(80)]),
        # Several scales: no row of tiles is complete before the last of them.
        (900, (1.0, 1.5), [(i, min(i + 30, 40), j, min(j + 30, 80))
                           for i in (0, 30) for j in (0, 30, 60)]),
    ],
)  # fmt: skip
def test_blocks_cover_the_image_within_the_memory(tiles, scales, expected):
    size = (40 * 256 - 9, 80 * 256 - 99)
    layouts = [*protocol(PyTorchEncodingProtocol, size[1], scales).layouts(size)]
    found = [
        (b.rows.start, b.rows.stop, b.columns.start, b.columns.stop)
        for b in blocks(layouts, size, tiles, False)
    ]
    assert found == expected
