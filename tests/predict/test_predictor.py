"""The segmenter on imported weights: names, sizes, kinds of input."""

import copy
import dataclasses
import io
import logging
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from torch_networks import random_weights, small_shapes, small_weights

from encnet_jax import Classifier, Segmenter, UserError
from encnet_jax.convert.infer_config import describe_torch_weights
from encnet_jax.convert.load import load_torch_model
from encnet_jax.convert.workdir import write_workdir
from encnet_jax.data.bands import RGB_INFO, declare_bands
from encnet_jax.data.dataset_info import CIFAR10, DatasetInfo, voc_colormap
from encnet_jax.inference.predict_fn import whole_image_logits
from encnet_jax.inference.score_map import ScoreMapPool, ScoreMapSharding
from encnet_jax.inference.tta import PyTorchEncodingProtocol
from encnet_jax.models import create_model
from encnet_jax.predict.find_images import find_images
from encnet_jax.predict.read_image import read_image
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.workdir import load_workdir
from encnet_jax.train import train
from tests import small_workdir
from tests.commands import make_camvid, run
from tests.interrupted import small_run_config
from tests.random_module import random_module


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "encnet.safetensors"
    weights = small_weights("mmseg_encnet_r50_d8")
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, path)
    return path


@pytest.fixture(scope="module")
def segmenter(weights_file):
    return Segmenter.from_torch(weights_file, base_size=33)


def test_names_of_files_may_start_with_a_tilde(weights_file, monkeypatch):
    folder = weights_file.parent
    monkeypatch.setenv("HOME", str(folder))
    found = describe_torch_weights(f"~/{weights_file.name}")
    assert found == describe_torch_weights(weights_file)
    for name in ("a.png", "~a.png"):
        Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(folder / name)
    monkeypatch.chdir(folder)
    for given in ("~/a.png", Path("~a.png")):
        assert read_image(given).shape == (9, 9, 3)


def test_any_kind_of_image_gives_labels_of_its_own_size(segmenter, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 52, 3), np.uint8)
    result = segmenter(pixels)
    classes = len(result.class_names)
    assert result.labels.shape == (40, 52) and result.labels.dtype == np.uint8
    assert result.labels.max() < classes
    assert result.presence.shape == (classes,)
    assert ((result.presence >= 0) & (result.presence <= 1)).all()
    assert result.overlay().height >= 40
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for other in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels)):
        np.testing.assert_array_equal(segmenter(other).labels, result.labels)


def test_probabilities_are_those_of_the_labels(segmenter):
    pixels = np.random.default_rng(1).integers(0, 255, (40, 52, 3), np.uint8)
    result = segmenter(pixels)
    probabilities = result.probabilities
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (40, 52, len(result.class_names))
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert (probabilities >= 0).all() and np.ptp(probabilities.max(-1)) > 1e-3
    chosen = np.take_along_axis(probabilities, result.labels[..., None].astype(int), -1)
    assert (probabilities.argmax(-1) == result.labels).mean() > 0.999
    np.testing.assert_allclose(chosen[..., 0], probabilities.max(-1), rtol=1e-5)
    assert result.probabilities is probabilities  # computed once


def test_results_are_pickled_without_the_network(segmenter):
    image = np.zeros((9, 12, 3), np.uint8)
    computed, other = segmenter(image), segmenter(image)
    expected = computed.probabilities
    for result in (computed, other):
        loaded = pickle.loads(pickle.dumps(result))
        np.testing.assert_array_equal(loaded.labels, result.labels)
        assert loaded.class_names == result.class_names and loaded.overlay().size
        if result is computed:
            np.testing.assert_array_equal(loaded.probabilities, expected)
        else:
            with pytest.raises(RuntimeError, match="probabilities: not computed befo"):
                _ = loaded.probabilities
    np.testing.assert_array_equal(other.probabilities, expected)


def test_copies_of_results_keep_the_network(segmenter):
    result = segmenter(np.zeros((9, 12, 3), np.uint8))
    shared, own = copy.copy(result), copy.deepcopy(result)
    assert shared.labels is result.labels and own.labels is not result.labels
    for each in (shared, own, dataclasses.replace(result)):
        np.testing.assert_array_equal(each.probabilities, result.probabilities)


def test_probabilities_are_the_softmax_of_the_logits(weights_file):
    pixels = np.random.default_rng(2).integers(0, 255, (33, 48, 3), np.uint8)
    result = Segmenter.from_torch(weights_file, base_size=0)(pixels)
    model, description = load_torch_model(weights_file)
    model.eval()
    logits, _ = whole_image_logits(
        model, pixels[None], mean=description.mean, std=description.std
    )
    expected = np.exp(logits[0] - logits[0].max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(result.probabilities, expected, rtol=2e-3, atol=1e-6)


def test_arrays_of_jax_are_images_too(segmenter):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 52, 3), np.uint8)
    result = segmenter(jnp.asarray(pixels))
    np.testing.assert_array_equal(result.labels, segmenter(pixels).labels)
    assert isinstance(result.image, np.ndarray) and result.overlay().height >= 40
    np.testing.assert_array_equal(read_image(jnp.asarray(pixels)), pixels)


def test_drawing_on_a_result_changes_nothing_else(segmenter):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 52, 3), np.uint8)
    expected, result = segmenter(pixels), segmenter(pixels)
    result.image[:20] = 0
    result.labels[:] = 255
    result.presence[:] = 0
    np.testing.assert_array_equal(result.probabilities, expected.probabilities)
    np.testing.assert_array_equal(segmenter(pixels).labels, expected.labels)


@pytest.mark.parametrize("bands", [False, True])
def test_result_keeps_its_image_when_the_array_is_used_again(bands):
    info = declare_bands(RGB_INFO, 3, (0, 65535)) if bands else RGB_INFO
    buffer = np.full((4, 6, 3), 7, np.uint16 if bands else np.uint8)
    kept = read_image(buffer, info)
    buffer[:] = 9
    assert (kept == 7).all()
    with pytest.raises(UserError, match="image: masked values; pass .filled"):
        read_image(np.ma.masked_equal(buffer, 9), info)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "float64 .*uint8"),
        (jnp.zeros((4, 4, 3)), "float32 .*uint8"),
        (np.zeros((3, 4, 4), np.uint8), r"uint8 \(3, 4, 4\); .*\(h, w, 3\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"uint8 \(1, 4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "without pixels"),
        ([[0, 0, 0]], "image: list; allowed are a file"),
        (None, "image: NoneType"),
        (b"a.jpg", "image: bytes"),
    ],
)
def test_what_is_no_image_is_named(segmenter, image, message):
    with pytest.raises(TypeError, match=message):
        segmenter(image)


def pil_image(path, damage):
    """Returns an image that Pillow opens and cannot decode."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    if damage == "truncated":
        return Image.open(io.BytesIO(path.read_bytes()[:-300]))
    image = Image.open(path)
    if damage == "after with":
        with image:
            pass
    if damage == "closed":
        image.load()
        image.close()
    return image


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("damage", ["truncated", "closed", "after with"])
def test_damaged_pil_images_are_one_line(tmp_path, damage, channels):
    image = pil_image(tmp_path / "a.jpg", damage)
    info = declare_bands(RGB_INFO, channels)
    with pytest.raises(UserError, match=r"^image: cannot be decoded .*: \S.+"):
        read_image(image, info)


@pytest.mark.parametrize("kind", ["file", "PIL"])
def test_images_of_a_value_range_equal_those_scaled_by_hand(
    segmenter, tmp_path, monkeypatch, kind
):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 52)).astype(np.uint8)
    path = tmp_path / "a.tif"
    Image.fromarray(pixels.astype(np.float32) / 255 * 5 - 2).save(path)
    with pytest.raises(UserError, match="floats of unknown range"):
        segmenter(path)
    info = dataclasses.replace(segmenter.info, value_range=(-2, 3))
    monkeypatch.setattr(segmenter, "info", info)
    result = segmenter(path if kind == "file" else Image.open(path))
    np.testing.assert_array_equal(result.image, np.stack([pixels] * 3, -1))
    np.testing.assert_array_equal(result.labels, segmenter(result.image).labels)


def test_classifier_scales_images_of_its_value_range(tmp_path):
    classifier = object.__new__(Classifier)  # without a network to compile
    classifier.info = dataclasses.replace(CIFAR10, value_range=(0, 0.5))
    classifier.size = 16
    classifier._params = classifier._batch_stats = None
    classifier._checked = True  # its classes
    classifier._classify = lambda params, batch_stats, images: images.reshape(1, -1)
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16)).astype(np.uint8)
    Image.fromarray(pixels.astype(np.float32) / 510).save(tmp_path / "a.tif")
    found = classifier(tmp_path / "a.tif").probabilities
    np.testing.assert_array_equal(found, pixels.ravel().repeat(3))


def test_flag_allows_larger_images(command, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="classes.json"):
        command(tmp_path / "a.png", workdir=tmp_path, max_image_pixels=5000)
    assert Image.MAX_IMAGE_PIXELS == 2500  # Pillow refuses above the double


def test_images_that_the_run_allows_are_allowed(command, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    small_workdir.write_workdir(
        tmp_path / "run", data=dict(max_image_pixels=5000), **small_workdir.TINY
    )
    (tmp_path / "a.png").touch()
    command(tmp_path / "a.png", workdir=tmp_path / "run")  # which is no image
    assert Image.MAX_IMAGE_PIXELS == 2500


def test_wrong_number_of_class_names_is_rejected(weights_file):
    with pytest.raises(UserError, match="2 names were given"):
        Segmenter.from_torch(weights_file, ["a", "b"])


def test_class_names_are_any_list(weights_file):
    names = np.array([f"thing {index}" for index in range(19)])
    segmenter = Segmenter.from_torch(weights_file, names)
    assert segmenter.info.class_names == tuple(names.tolist())
    segmenter = Segmenter.from_torch(weights_file, [])
    assert segmenter.info.class_names[18] == "class 18"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(class_names="abcdefghijklmnopqrs"), "class_names=.*: must be a list"),
        (dict(class_names=["a", "b", "a"]), "class_names: 'a': must be a name, given"),
        (dict(class_names=["a", " "]), "class_names: ' ': must be a name, given once"),
        (dict(base_size=-1), "base_size=-1: must be an integer of at least 0"),
        (dict(base_size=33.5), "base_size=33.5: must be an integer of at least 0"),
    ],
)
def test_arguments_are_checked_before_a_file_is_read(settings, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Segmenter.from_torch("gone.pth", **settings)


@pytest.mark.parametrize("size", [-1, 0, 0.5, 24.0])
def test_sizes_are_integers(size):
    settings = dict(num_classes=3, **small_workdir.TINY)
    info = DatasetInfo("", ("a", "b", "c"), voc_colormap(3), {})
    if size:
        model = random_module(create_model, name="fcn", **settings)
        with pytest.raises(UserError, match=f"^base_size={size}: must be an integer"):
            Segmenter(model, info, size)
    model = random_module(create_model, name="resnet14", num_classes=3, width=2)
    with pytest.raises(UserError, match=f"^size={size}: .* integer of at least 1"):
        Classifier(model, info, size)
    assert Classifier(model, info, np.int64(24)).size == 24


@pytest.mark.parametrize("bias", [0, -300])
def test_probabilities_of_windows_are_finite(bias):
    """Those of logits far below 0, whose exponentials are all 0, are 0 too."""
    settings = dict(name="fcn", num_classes=3, **small_workdir.TINY)
    model = random_module(create_model, **settings)
    model.head.classifier.conv.kernel[...] *= 0
    model.head.classifier.conv.bias[...] += bias
    info = DatasetInfo("", ("a", "b", "c"), voc_colormap(3), {})
    protocol = PyTorchEncodingProtocol(
        *(32, 24, (1.0,), False, 0), True, mean=info.mean, std=info.std
    )
    result = Segmenter(model, info, protocol=protocol)(np.zeros((32, 24, 3), np.uint8))
    expected = 0 if bias else 1 / 3
    np.testing.assert_allclose(result.probabilities, expected, rtol=1e-5)


def test_threads_may_share_a_segmenter():
    """A score map takes a tile that another thread gives back, or a new one."""

    class Racing(list):
        """A list that another thread empties after it was asked for its length."""

        def __len__(self):
            return 1

    mesh = mesh_of(jax.local_devices()[:1])
    pool = ScoreMapPool(ScoreMapSharding(3, softmax=False, mesh=mesh))
    pool._free[False] = Racing()
    tile = pool.acquire()
    assert tile.shape == (256, 256, 3) and not np.any(tile)
    pool.release(tile)
    assert pool.acquire() is tile


def test_files_folders_and_globs_are_found_once(tmp_path):
    others = ("notes.txt", "._a.jpg", ".b.png", "c.pdf", "d.eps", "e.mpg", "f.h5")
    for name in ("b.png", "a.jpg", *others):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = find_images([str(tmp_path), str(tmp_path / "*.png")])
    assert [path.name for path in found] == ["a.jpg", "b.png"]
    assert find_images([str(tmp_path / "*")]) == found
    with pytest.raises(UserError, match=r"\*.pdf: no such image"):
        find_images([str(tmp_path / "*.pdf")])
    with pytest.raises(UserError, match="c.png: no such image"):
        find_images([str(tmp_path / "c.png")])


def test_links_to_missing_images_are_not_left_out(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("elsewhere.png")
    found = find_images([str(tmp_path)])
    assert [Path(path).name for path in found] == ["a.png", "b.png"]
    with pytest.raises(UserError, match="b.png: .*No such file"):
        read_image(tmp_path / "b.png")


@pytest.mark.parametrize("name", ["a", "a [1]"])
def test_folders_inside_a_folder_are_counted_and_a_glob_has_them(
    tmp_path, caplog, monkeypatch, name
):
    caplog.set_level(logging.INFO, "encnet_jax")
    folder = tmp_path / name
    (folder / "b" / "c").mkdir(parents=True)
    for image in ("1.png", "b/2.png", "b/c/3.png"):
        Image.new("RGB", (4, 4)).save(folder / image)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [path.name for path in find_images([f"~/{name}"])] == ["1.png"]
    (line,) = caplog.messages
    assert "folders inside (1) are not looked into; " in line
    found = find_images([line.split("'")[1]])
    assert [path.name for path in found] == ["1.png", "2.png", "3.png"]


def test_training_starts_from_the_backbone_of_a_file(tmp_path, caplog):
    weights = small_weights("torchvision_resnet18")
    path = tmp_path / "backbone.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, path)
    width = weights["conv1.weight"].shape[0]
    workdir = tmp_path / "run"
    config = small_run_config(str(make_camvid(tmp_path / "camvid")))
    config.model.update(dict(backbone="resnet18", width=width, weights=str(path)))
    config.total_steps, config.learning_rate = 1, 1e-20  # keeps the weights
    with caplog.at_level("INFO"):
        train(config, workdir)
    assert "torchvision" in caplog.text
    kernel = np.asarray(
        load_workdir(workdir).params["backbone"]["stem"][0]["conv"]["kernel"]
    )
    expected = weights["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


@pytest.mark.slow
def test_evaluate_and_predict_accept_an_imported_workdir(tmp_path):
    shapes = small_shapes("mmseg_encnet_r50_d8")
    classes = shapes["decode_head.conv_seg.bias"][0]
    eleven = {
        name: tuple(11 if size == classes else size for size in shape)
        for name, shape in shapes.items()
    }
    path, workdir = tmp_path / "encnet.safetensors", tmp_path / "imported"
    save_file(
        {k: np.ascontiguousarray(v) for k, v in random_weights(eleven).items()}, path
    )
    write_workdir(path, workdir, dataset="camvid")
    camvid = make_camvid(tmp_path / "camvid")
    scored = run(
        "evaluate.py",
        "--config=configs/camvid.py:cpu",
        f"--config.data.data_dir={camvid}",
        f"--workdir={workdir}",
        "--split=test",
        "--config.evaluation.base_size=48",
    )
    assert scored.returncode == 0 and "3 images, step 0" in scored.stdout, scored.stderr
    image = next((camvid / "test").iterdir())
    output = tmp_path / "out"
    predicted = run("predict.py", f"--workdir={workdir}", f"--output={output}", image)
    assert predicted.returncode == 0, predicted.stderr
    assert (output / f"{image.stem}-overlay.png").is_file()
