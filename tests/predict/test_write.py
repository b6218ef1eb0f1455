"""The files of predict.py: labels in the data set's values, nothing overwritten."""

import json

import numpy as np
import pytest
from PIL import Image

from encnet_jax import Segmenter
from encnet_jax.config import load_config
from encnet_jax.convert.workdir import write_workdir
from encnet_jax.data.dataset_info import ADE20K, CITYSCAPES, load_info, save_info
from encnet_jax.data.folder import read_info
from encnet_jax.data.registry import open_dataset
from encnet_jax.errors import UserError
from encnet_jax.evaluate.run import evaluate_workdir
from encnet_jax.metrics import confusion_matrix_np
from encnet_jax.predict.find_images import find_images
from encnet_jax.predict.predictor import ClassPrediction, Segmentation
from encnet_jax.predict.write import (
    parse_kinds,
    plan_classes,
    plan_predictions,
    write_classes,
    write_predictions,
)
from encnet_jax.visualize.overlay import label_image
from tests import small_workdir

COUNTED = {"classes": [{"name": n, "label": k} for k, n in enumerate("abc", 1)]}
COLORED = {
    "classes": [
        {"name": "a", "color": "#804080"},
        {"name": "b", "color": [0, 0, 142], "label": 7},
        {"name": "c", "color": "#ffffff", "label": 2},
    ],
    "ignore": ["#000000"],
}
# Labels of pixels without a class, and of a, b and c.
RAW = {"counted": (0, 1, 2, 3), "colored": (255, 0, 7, 2), "rgb": (255, 0, 7, 2)}
COUNTED["ignore"] = [0]


def make_folder(root, kind):
    """Writes a folder data set of three images with labels of one kind."""
    rng = np.random.default_rng(0)
    for name in ("images/val", "labels/val"):
        (root / name).mkdir(parents=True)
    content = COUNTED if kind == "counted" else COLORED
    (root / "classes.json").write_text(json.dumps(content))
    colors = {0: (128, 64, 128), 7: (0, 0, 142), 2: (255, 255, 255), 255: (0, 0, 0)}
    for index in range(3):
        drawn = rng.integers(0, 4, (6, 8)).repeat(6, 0).repeat(6, 1)
        labels = np.array(RAW[kind], np.uint8)[drawn]
        if kind == "rgb":
            labels = np.array([colors.get(k, (0, 0, 0)) for k in range(256)])[labels]
        image = rng.integers(0, 256, (36, 48, 3), np.uint8)
        Image.fromarray(image).save(root / f"images/val/{index}.png")
        Image.fromarray(labels.astype(np.uint8)).save(root / f"labels/val/{index}.png")
    return root


def make_run(workdir, info, data_dir):
    """Writes a workdir as training does, with random weights."""
    data = dict(data_dir=str(data_dir), base_size=48, crop_size=32)
    small_workdir.write_workdir(workdir, info=info, data=data, **small_workdir.TINY)
    config = load_config(workdir / "config.json")
    config.mesh.data = 1
    return config


@pytest.mark.parametrize("kind", RAW)
def test_predictions_score_as_the_evaluation_does(tmp_path, kind):
    root = make_folder(tmp_path / "data", kind)
    workdir = tmp_path / "run"
    config = make_run(workdir, read_info(root), root)
    evaluate_workdir(config, workdir, "val")
    scores = json.loads((workdir / "evaluation" / "val.json").read_text())
    truth = open_dataset("folder", "val", str(root))
    truth = [truth[index].labels for index in range(3)]

    segmenter = Segmenter.from_workdir(workdir)
    out = tmp_path / "out"
    images = find_images([str(root / "images" / "val")])
    assert write_predictions(segmenter, plan_predictions(images, out), out) == 0

    for file in (root / "labels" / "val").iterdir():  # now labels of the data set
        file.write_bytes((out / file.name).read_bytes())
    read = open_dataset("folder", "val", str(root))
    matrix = 0
    for index, labels in enumerate(truth):
        np.testing.assert_array_equal(
            read[index].labels, segmenter(images[index]).labels
        )
        matrix += confusion_matrix_np(labels, read[index].labels, 3)
    assert matrix.sum() and scores["confusion_matrix"] == matrix.tolist()
    # Not class indices.
    assert set(np.unique(Image.open(out / "0.png"))) <= set(RAW[kind][1:])


def test_label_image_has_the_color_of_a_class_at_its_label(tmp_path):
    info = read_info(make_folder(tmp_path, "colored"))
    image = label_image(np.uint8([[0, 1, 2]]), info)
    assert image.mode == "P" and np.asarray(image).tolist() == [[0, 7, 2]]
    painted = np.asarray(image.convert("RGB")).tolist()
    assert painted == [[[128, 64, 128], [0, 0, 142], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("info", "labels"), [(ADE20K, (1, 2, 150)), (CITYSCAPES, (7, 8, 33))]
)
def test_label_values_are_those_of_the_data_set(tmp_path, info, labels):
    classes = np.uint8([[0, 1, info.num_classes - 1]])
    for name in ("new", "old"):
        path = tmp_path / f"{name}.json"
        save_info(info, path)
        if name == "old":  # 0.2.0
            stored = json.loads(path.read_text())
            del stored["label_map"], stored["label_colors"]
            path.write_text(json.dumps(stored))
        kept = load_info(path)
        assert kept.label_map == info.label_map
        assert tuple(np.asarray(label_image(classes, kept))[0]) == labels


def test_old_file_of_other_classes_has_labels_that_are_indices(tmp_path):
    path = tmp_path / "classes.json"
    save_info(ADE20K, path)
    stored = json.loads(path.read_text())
    del stored["label_map"], stored["label_colors"]
    stored["class_names"] = ["wall", "other"]
    path.write_text(json.dumps(stored))
    image = label_image(np.uint8([[0, 1]]), load_info(path))
    assert np.asarray(image).tolist() == [[0, 1]]


def test_info_survives_the_workdir(tmp_path):
    info = read_info(make_folder(tmp_path / "data", "colored"))
    save_info(info, tmp_path / "classes.json")
    kept = load_info(tmp_path / "classes.json")
    assert kept.label_map == info.label_map
    assert kept.label_colors == info.label_colors


class FakeSegmenter:
    """Finds class 1 everywhere, and cannot read files named `broken`."""

    info = ADE20K

    def __call__(self, path):
        if path.stem == "broken":
            raise UserError(f"{path}: cannot be decoded")
        pixels = np.asarray(Image.open(path).convert("RGB"))
        return Segmentation(
            labels=np.ones(pixels.shape[:2], np.uint8),
            presence=None,
            class_names=self.info.class_names,
            colors=self.info.colors,
            image=pixels,
            _compute_probabilities=lambda pixels: None,
        )


def photos(folder, *names):
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        pixels = np.random.default_rng(index).integers(0, 255, (4, 5, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return {path: path.read_bytes() for path in folder.iterdir()}


def predict(arguments, output):
    images = find_images([str(argument) for argument in arguments])
    return write_predictions(FakeSegmenter(), plan_predictions(images, output), output)


def test_second_run_into_the_folder_of_the_photos(tmp_path, capsys):
    folder = tmp_path / "photos"
    before = photos(folder, "a.jpg", "b.jpg", "a-overlay.jpg", "c.webp", "broken.jpg")
    assert predict([folder], folder) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "broken.jpg" in captured.err
    names = {path.name for path in folder.iterdir()}
    assert len(names) == 5 + 2 * 4
    assert predict([folder], folder) == 1
    assert predict([f"{folder}/*"], folder) == 1
    assert predict(sorted(folder.iterdir()), folder) == 1  # as the shell expands *
    assert {path.name for path in folder.iterdir()} == names
    assert all(path.read_bytes() == data for path, data in before.items())
    with pytest.raises(UserError, match="no images but results of predict"):
        find_images([str(folder / "b.png")])


def test_nothing_is_written_if_one_photo_would_be_replaced(tmp_path):
    folder = tmp_path / "photos"
    before = photos(folder, "a.png", "b.jpg")
    with pytest.raises(UserError, match="a.png: is one of the images"):
        predict([folder], folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_disk_that_fills_up_leaves_complete_files(tmp_path, monkeypatch):
    photos(tmp_path / "in", "a.jpg", "b.jpg")
    out, calls = tmp_path / "out", []

    def overlay(self):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return Image.new("RGB", (5, 4))

    monkeypatch.setattr(Segmentation, "overlay", overlay)
    with pytest.raises(UserError, match="b-overlay.png: cannot be written: No space"):
        predict([tmp_path / "in"], out)
    assert {p.name for p in out.iterdir()} == {"a.png", "a-overlay.png", "b.png"}


def test_kinds_of_result_are_those_asked_for(tmp_path):
    info = read_info(make_folder(tmp_path / "data", "counted"))
    workdir, out = tmp_path / "run", tmp_path / "out"
    make_run(workdir, info, tmp_path / "data")
    segmenter = Segmenter.from_workdir(workdir)
    images = find_images([str(tmp_path / "data" / "images" / "val" / "0.png")])
    kinds = parse_kinds(["probabilities", "labels"])
    for _ in range(2):  # own results are replaced
        plan = plan_predictions(images, out, kinds=kinds)
        assert write_predictions(segmenter, plan, out, kinds=kinds) == 0
    assert {path.name for path in out.iterdir()} == {"0.png", "0-probabilities.npz"}
    result = segmenter(images[0])
    with np.load(out / "0-probabilities.npz") as written:
        assert written["class_names"].tolist() == ["a", "b", "c"]
        probabilities = written["probabilities"]
    assert probabilities.dtype == np.float16 and probabilities.shape == (36, 48, 3)
    np.testing.assert_allclose(
        probabilities, result.probabilities, rtol=5e-4, atol=1e-7
    )
    np.testing.assert_array_equal(probabilities.argmax(-1), result.labels)

    (out / "0-probabilities.npz").write_bytes(b"")
    with pytest.raises(UserError, match="0-probabilities.npz: exists, and is not"):
        plan_predictions(images, out, kinds=kinds)
    np.savez(out / "0-probabilities.npz", probabilities=probabilities)
    with pytest.raises(UserError, match="0-probabilities.npz: exists, and is not"):
        plan_predictions(images, out, kinds=kinds)


@pytest.mark.parametrize("values", [[], [""], ["label"], ["labels", "x"]])
def test_unknown_kind_of_result_is_refused(values):
    with pytest.raises(UserError, match="allowed are labels, probabilities, overlay"):
        parse_kinds(values)


class FakeClassifier:
    """Finds the second of two classes."""

    def __call__(self, path):
        return ClassPrediction(1, np.float32([0.25, 0.75]), ("cat", "dog"))


def classify(images, output):
    return write_classes(FakeClassifier(), plan_classes(images, output), output)


def test_classes_of_earlier_images_are_kept(tmp_path):
    photos(tmp_path / "x", "a.jpg", "b.jpg")
    photos(tmp_path / "y", "c.jpg", "a.jpg")
    out = tmp_path / "out"
    assert classify([tmp_path / "x" / "a.jpg", tmp_path / "x" / "b.jpg"], out) == 0
    assert classify([tmp_path / "y" / "c.jpg", tmp_path / "x" / "a.jpg"], out) == 0
    written = json.loads((out / "classes.json").read_text())
    assert sorted(written) == ["a", "b", "c"]
    assert written["c"]["class"] == "dog" and len(written["c"]) == 3
    with pytest.raises(UserError, match="'a' is another image"):
        classify([tmp_path / "y" / "a.jpg"], out)


def test_classes_of_interrupted_and_of_simultaneous_commands_are_kept(tmp_path):
    photos(tmp_path / "x", "a.jpg", "b.jpg", "c.jpg")
    images = [tmp_path / "x" / f"{name}.jpg" for name in "abc"]
    out = tmp_path / "out"

    class Interrupted(FakeClassifier):
        def __call__(self, path):
            if path.name == "b.jpg":
                classify(images[2:], out)
                raise KeyboardInterrupt
            return super().__call__(path)

    plan = plan_classes(images[:2], out)
    with pytest.raises(KeyboardInterrupt):
        write_classes(Interrupted(), plan, out)
    assert sorted(json.loads((out / "classes.json").read_text())) == ["a", "c"]


@pytest.mark.parametrize("content", ["[1, 2]", '{"classes": ["a", "b"]}', "text"])
def test_classes_file_of_another_origin_is_not_replaced(tmp_path, content):
    photos(tmp_path / "x", "a.jpg")
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(UserError, match="classes.json: exists, and is not a result"):
        classify([tmp_path / "x" / "a.jpg"], tmp_path)
    save_info(ADE20K, tmp_path / "classes.json")  # that of a workdir
    with pytest.raises(UserError, match="classes.json: exists, and is not a result"):
        classify([tmp_path / "x" / "a.jpg"], tmp_path)


def test_imported_workdir_keeps_the_label_map(tmp_path):
    from safetensors.numpy import save_file
    from torch_networks import random_weights, small_shapes

    shapes = small_shapes("mmseg_encnet_r50_d8")
    classes = shapes["decode_head.conv_seg.bias"][0]
    nineteen = {
        name: tuple(19 if size == classes else size for size in shape)
        for name, shape in shapes.items()
    }
    weights = random_weights(nineteen)
    path = tmp_path / "encnet.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, path)
    write_workdir(path, tmp_path / "run", dataset="cityscapes")
    info = load_info(tmp_path / "run" / "classes.json")
    assert info.label_map == CITYSCAPES.label_map
    assert np.asarray(label_image(np.uint8([[0, 18]]), info)).tolist() == [[7, 33]]
