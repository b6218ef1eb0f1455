"""Each key of `data`, by the batches that the network gets from `train`."""

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from encnet_jax.data import dataset_info as infos
from encnet_jax.data.array_dataset import ArrayDataset
from encnet_jax.errors import UserError
from encnet_jax.models.cifar import ClassifierOutput
from encnet_jax.models.registry import MODELS
from tests.settings.toy import ToyBackbone, toy_dataset

sets = pytest.mark.sets


def numbered(count=4, size=4):
    """Returns images in which no two pixels are alike, with all labels 0."""
    pixels = np.arange(count * size * size, dtype=np.uint8).reshape(count, size, size)
    images = np.stack([pixels, pixels + 100, pixels * 2], -1)
    return toy_dataset(np.zeros((count, size, size), np.uint8), images)


def draws(index, count, *, seed=0):
    """Returns the draws of augmentation on the device in the first epoch."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), index)
    return key, np.asarray(jax.random.uniform(key, (count,)))


@sets("data.crop_size")
def test_crop_size(train_steps):
    images, labels = train_steps(0, **{"data.crop_size": 3}).batch()
    assert images.shape == (4, 3, 3, 3) and labels.shape == (4, 3, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("data.base_size", 2, marks=sets("data.base_size")),
        pytest.param("data.scale_range", (0.5, 0.5), marks=sets("data.scale_range")),
    ],
)
def test_images_of_half_the_size(key, value, train_steps):
    images, labels = train_steps(0, **{key: value}).batch()
    inside = np.zeros((4, 4), bool)
    inside[:2, :2] = True
    assert ((labels != 255) == inside).all()
    assert (images[:, inside] == 100).all() and not images[:, ~inside].any()


@sets("data.flip")
@pytest.mark.parametrize("flip", [False, True])
def test_flip(flip, train_steps):
    dataset = numbered(8)
    recorded = train_steps(0, dataset, batch_size=8, **{"data.flip": flip})
    flipped = [flip and draws(index, 7)[1][3] < 0.5 for index in range(8)]
    assert 0 < sum(flipped) < 8 or not flip
    for index, image in zip(recorded.inputs[0]["index"], recorded.batch()[0]):
        expected = dataset.images[index]
        expected = expected[:, ::-1] if flipped[index] else expected
        np.testing.assert_array_equal(image, expected)


@sets("seed")
def test_seed_of_augmentation(train_steps):
    dataset = numbered(8)
    recorded = train_steps(0, dataset, batch_size=8, seed=7, **{"data.flip": True})
    for index, image in zip(recorded.inputs[0]["index"], recorded.batch()[0]):
        flipped = draws(index, 7, seed=7)[1][3] < 0.5
        expected = dataset.images[index]
        expected = expected[:, ::-1] if flipped else expected
        np.testing.assert_array_equal(image, expected)


def deep(count=4):
    """Returns images of five channels with values of 12 bits."""
    images = np.full((count, 4, 4, 5), 1000, np.uint16)
    images[::2, ..., 4] = 3000
    return images


@sets("data.channels")
def test_five_channels(train_steps):
    toy = toy_dataset(images=deep())
    recorded = train_steps(0, toy, **{"data.channels": 5})
    images, _ = recorded.batch()
    assert images.shape == (4, 4, 4, 5)
    np.testing.assert_allclose(images[..., 0], 1000 * 255 / 65535, rtol=1e-5)
    assert len(toy.info.mean) == 3  # training takes a copy


@sets("data.channels")
def test_network_of_five_channels(train_steps, monkeypatch):
    seen = []
    create = ToyBackbone.__init__

    def record(self, *, in_channels=3, rngs):
        seen.append(in_channels)
        create(self, in_channels=in_channels, rngs=rngs)

    monkeypatch.setattr(ToyBackbone, "__init__", record)
    train_steps(0, toy_dataset(images=deep()), **{"data.channels": 5})
    assert set(seen) == {5}


@sets("data.channels", "data.value_range")
def test_files_of_one_channel_of_floats(train_steps, tmp_path):
    pytest.importorskip("tensorflow")
    pytest.importorskip("tifffile")
    root = tmp_path / "folder"
    write_folder(root, lone_pixels())
    for path in (root / "images" / "more").iterdir():
        path.unlink()
        Image.fromarray(np.ones((4, 4), np.float32)).save(path.with_suffix(".tif"))
    changes = {"data.channels": 1, "data.value_range": (0.0, 4.0)}
    images, _ = train_steps(0, "files", **files(root), **changes).batch()
    assert images.shape == (4, 4, 4, 1)
    np.testing.assert_allclose(images, 16384)  # a quarter of 65535


@sets("data.channels")
def test_alpha_is_not_left_out(train_steps, tmp_path):
    pytest.importorskip("tensorflow")
    write_folder(tmp_path / "folder", lone_pixels())
    changes = files(tmp_path / "folder") | {"data.channels": 4}
    with pytest.raises(UserError, match="0.png: 3 channels; 4 are expected"):
        train_steps(0, "files", **changes)


@sets("data.value_range")
@pytest.mark.parametrize("value", [(500, 1500), ((500, 1500),) * 3])
def test_values_are_mapped_from_their_range(value, train_steps):
    toy = toy_dataset(images=deep()[..., 2:])
    recorded = train_steps(0, toy, **{"data.value_range": value})
    images, _ = recorded.batch()
    np.testing.assert_allclose(images[..., 0], 127.5, atol=0.01)
    at = recorded.inputs[0]["index"] % 2 == 0
    np.testing.assert_allclose(images[at][..., 2], 255)  # clipped


@sets("data.color_jitter")
def test_color_jitter(train_steps):
    recorded = train_steps(0, **{"data.color_jitter": 0.4})  # gray, 100
    for index, image in zip(recorded.inputs[0]["index"], recorded.batch()[0]):
        brightness = 1 + 0.4 * (2 * draws(index, 7)[1][4] - 1)
        np.testing.assert_allclose(image, 100 * brightness, atol=0.51)


@sets("data.rotation")
def test_rotation(train_steps):
    recorded = train_steps(0, **{"data.rotation": 90})
    rows, columns = np.mgrid[:4, :4] - 1.5
    for index, label in zip(recorded.inputs[0]["index"], recorded.batch()[1]):
        key = jax.random.fold_in(draws(index, 7)[0], 1)
        angle = np.radians(90 * jax.random.uniform(key, (), minval=-1, maxval=1))
        down = np.cos(angle) * rows + np.sin(angle) * columns
        right = np.cos(angle) * columns - np.sin(angle) * rows
        inside = (abs(down) < 2) & (abs(right) < 2)
        np.testing.assert_array_equal(label != 255, inside)
    assert (recorded.batch()[1] == 255).any()


def lone_pixels(count=4):
    """Returns labels of which one pixel has a class: 1, at another place in each."""
    labels = np.full((count, 4, 4), 255, np.uint8)
    for index in range(count):
        labels[index, index % 4, 3 - index // 2] = 1
    return labels


@sets("data.class_crop_rate")
@pytest.mark.parametrize("cached", [True, False])
def test_crops_centered_by_class(cached, train_steps, tmp_path):
    dataset, changes = toy_dataset(lone_pixels()), {}
    if not cached:
        pytest.importorskip("tensorflow")
        write_folder(tmp_path / "folder", lone_pixels())
        dataset, changes = "files", files(tmp_path / "folder")
    changes |= {"data.class_crop_rate": 1.0, "data.crop_size": 1}
    recorded = train_steps(0, dataset, **changes)
    assert (recorded.batch()[1] == 1).all()


def write_folder(root, labels, split="more"):
    """Writes label maps and black images as a data set of two classes."""
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True)
    for index, values in enumerate(labels):
        name = f"{split}/{index}.png"
        Image.fromarray(values).save(root / "labels" / name)
        Image.new("RGB", values.shape[::-1]).save(root / "images" / name)
    (root / "classes.json").write_text('["zero", "one"]')


class ToyClassifier(nnx.Module):
    """A classifier of constant logits."""

    checks = {}

    def __init__(self, num_classes, *, rngs):
        self.bias = nnx.Param(jax.numpy.zeros(num_classes))

    def __call__(self, images):
        shape = (len(images), len(self.bias[...]))
        return ClassifierOutput(jax.numpy.broadcast_to(self.bias[...], shape))


@sets("data.pad")
def test_border_of_classification(train_steps, monkeypatch):
    monkeypatch.setitem(MODELS, "resnet14", ToyClassifier)
    images = numbered().images
    dataset = ArrayDataset(infos.CIFAR10, images, np.arange(4))
    settings = {"data.pad": 2, "model.name": "resnet14", "model.backbone": "resnet50"}
    recorded = train_steps(0, dataset, **settings)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for index, image in zip(recorded.inputs[0]["index"], recorded.batch()[0]):
        top, left = np.floor(draws(index, 6)[1][:2] * 5).astype(int)
        expected = padded[index, top : top + 4, left : left + 4]
        np.testing.assert_array_equal(image, expected)


@sets("data.cache_on_device")
def test_data_set_on_the_device(train_steps):
    dataset = numbered()
    recorded = train_steps(0, dataset)
    assert recorded.inputs[0].keys() == {"index", "epoch"}
    np.testing.assert_array_equal(recorded.resident["images"], dataset.images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of three splits that differ in number and color of their images.

    Half the pixels are of class 0, in the split `one` all.
    """
    root = tmp_path_factory.mktemp("folder")
    for split, count, level in (("train", 8, 100), ("more", 4, 200), ("one", 1, 0)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            name = f"{index}.png"
            image = Image.new("RGB", (4, 4), (level, level, level))
            image.save(root / "images" / split / name)
            labels = np.repeat(np.uint8([[0, split != "one"]]), 2, 1).repeat(4, 0)
            Image.fromarray(labels).save(root / "labels" / split / name)
    (root / "classes.json").write_text('["zero", "one"]')
    return root


def files(root, **changes):
    """Returns settings for the images of a folder, without a cache."""
    return {
        "data.name": "folder",
        "data.data_dir": str(root),
        "data.train_split": "more",
        "evaluation.split": "more",
        "data.cache_on_device": False,
        **changes,
    }


@sets("data.name", "data.data_dir", "data.train_split")
def test_images_of_a_split(train_steps, folder):
    cached = files(folder, **{"data.cache_on_device": True})
    recorded = train_steps(0, "files", **cached)
    assert recorded.resident["images"].shape == (4, 4, 4, 3)
    assert (recorded.resident["images"] == 200).all()


@sets("data.resize")
def test_crops_are_resized_on_the_device(train_steps, folder):
    pytest.importorskip("tensorflow")
    recorded = train_steps(0, "files", **files(folder, **{"data.resize": "device"}))
    assert "images" not in recorded.inputs[0]
    assert recorded.inputs[0]["padded"].shape == (4, 24, 24, 3)  # twice 4, and 16
    assert (recorded.batch()[0] == 200).all()


@sets("data.padded_size")
def test_size_of_the_buffer(train_steps, folder):
    pytest.importorskip("tensorflow")
    changes = {"data.resize": "device", "data.padded_size": 9}
    recorded = train_steps(0, "files", **files(folder, **changes))
    assert recorded.inputs[0]["padded"].shape == (4, 9, 9, 3)


@sets("seed")
def test_seed_of_augmentation_on_the_host(train_steps, folder):
    pytest.importorskip("tensorflow")
    changes = {"data.color_jitter": 0.4, "data.train_split": "train"}
    recorded = train_steps(0, "files", seed=7, **files(folder, **changes))
    order = np.random.default_rng((7, 0)).permutation(8)[:4]
    for index, image in zip(order, recorded.inputs[0]["images"]):
        draw = np.random.default_rng((7, 0, int(index), 1)).random(7)[4]
        brightness = 1 + 0.4 * (2 * draw - 1)
        np.testing.assert_allclose(image, 100 * brightness, atol=0.51)
