"""Evaluation: every image once, whatever the batches; many scales agree with one."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.data.classes import DatasetInfo
from encnet_jax.data.sources import Example
from encnet_jax.evaluation import (
    evaluate,
    make_multi_scale_score_fn,
    make_score_fn,
)
from encnet_jax.models.encnet import SegmentationOutput
from encnet_jax.train_state import split_model

INFO = DatasetInfo("made up", ("a", "b", "c"), ((0, 0, 0),) * 3, {})


class Brightest(nnx.Module):
    """Says of each pixel which channel is the brightest; a pixel sees only itself."""

    def __init__(self):
        self.factor = nnx.Param(jnp.ones(()))

    def __call__(self, images):
        return SegmentationOutput(images * self.factor[...])


class Made:
    """Images of several sizes with labels that are partly wrong and partly ignored."""

    info = INFO

    def __init__(self, sizes):
        rng = np.random.default_rng(0)
        self.examples = []
        for number, (h, w) in enumerate(sizes):
            image = rng.integers(0, 256, (h, w, 3), np.uint8)
            labels = rng.integers(0, 3, (h, w)).astype(np.uint8)
            labels[0] = 255
            self.examples.append(Example(image, labels, str(number)))

    def __len__(self):
        return len(self.examples)

    def example(self, number):
        return self.examples[number]


def matrix_by_hand(source):
    matrix = np.zeros((3, 3), np.int64)
    mean, std = np.array(INFO.mean), np.array(INFO.std)
    for example in source.examples:
        predicted = ((example.image / 255 - mean) / std).argmax(-1)
        valid = example.labels != 255
        np.add.at(matrix, (example.labels[valid], predicted[valid]), 1)
    return matrix


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_image_counts_once_whatever_the_batches(batch_size):
    source = Made([(5, 7), (6, 4), (5, 7), (5, 7), (6, 4)])
    model = Brightest()
    _, params, stats = split_model(model)
    score = make_score_fn(model, INFO)
    done = []
    results, kept = evaluate(
        score,
        params,
        stats,
        source,
        batch_size=batch_size,
        progress=done.append,
        keep=2,
    )
    np.testing.assert_array_equal(results["confusion_matrix"], matrix_by_hand(source))
    assert results["images"] == 5 and done[-1] == 5
    assert [example.name for example, _ in kept] == ["0", "4"]
    assert kept[1][1].shape == (6, 4)


def test_one_scale_in_one_window_is_the_whole_image():
    source = Made([(12, 16), (16, 9), (16, 16)])
    model = Brightest()
    _, params, stats = split_model(model)
    score = make_multi_scale_score_fn(
        model,
        INFO,
        base_size=16,
        crop_size=16,
        scales=(1.0,),
        flip=True,
        align_corners=True,
    )
    results, _ = evaluate(score, params, stats, source, batch_size=2)
    np.testing.assert_array_equal(results["confusion_matrix"], matrix_by_hand(source))


def test_network_compiles_once_for_images_of_all_sizes():
    shapes = []

    class Counting(Brightest):
        def __call__(self, images):
            shapes.append(images.shape)
            return super().__call__(images)

    model = Counting()
    _, params, stats = split_model(model)
    score = make_multi_scale_score_fn(
        model,
        INFO,
        base_size=20,
        crop_size=12,
        scales=(0.5, 1.0, 1.5),
        flip=True,
        align_corners=False,
    )
    sizes = [(10 + n, 30 - n) for n in range(8)]
    evaluate(score, params, stats, Made(sizes), batch_size=2)
    assert shapes == [(8, 12, 12, 3)]
