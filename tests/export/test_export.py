"""Exported models run without the package and equal the original in JAX."""

import dataclasses
import importlib.util
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

from encnet_jax.data.dataset_info import ADE20K, load_info, save_info
from encnet_jax.errors import UserError
from encnet_jax.export import formats as export_formats
from encnet_jax.export.readme import export_readme
from encnet_jax.export.run import (
    _CHECKED_SIZE,
    compare,
    export_workdir,
    load_trained,
)
from encnet_jax.inference.predict_fn import make_classify_fn, make_predict_fn
from encnet_jax.models.layers import max_pool
from encnet_jax.ops.resize import adaptive_average_pool, resize_bilinear
from encnet_jax.predict.predictor import Segmenter
from encnet_jax.run.workdir import load_workdir
from tests.commands import environment, errors, run
from tests.small_workdir import MEAN, STD, TINY, write_workdir

pytestmark = pytest.mark.filterwarnings(
    "ignore:'.value' access is now deprecated:DeprecationWarning:jax2onnx"
)

SHAPES = [(1, 9, 9), (2, 33, 47), (3, 64, 40)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a workdir and its model's labels for images of several shapes."""
    workdir = tmp_path_factory.mktemp("run")
    predict = make_predict_fn(write_workdir(workdir, **TINY), mean=MEAN, std=STD)
    return workdir, [np.asarray(predict(images_of(*shape))) for shape in SHAPES]


@pytest.fixture(scope="module")
def stablehlo(trained, tmp_path_factory):
    """Returns the folder that export.py wrote."""
    output = tmp_path_factory.mktemp("stablehlo") / "new" / "model"
    result = run("export.py", f"--workdir={trained[0]}", f"--output={output}")
    assert result.returncode == 0, result.stderr
    assert "0 of 13534 labels differ" in result.stdout
    return output


@pytest.fixture(scope="module")
def onnx(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("onnx") / "model"
    export_workdir(trained[0], output, "onnx")
    return output


def images_of(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def code_of(folder):
    (code,) = re.findall(
        "```python\n(.*?)```", (folder / "README.md").read_text(), re.S
    )
    return code


def test_readme_is_utf_8_in_any_locale(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    info = load_info(folder / "classes.json")
    names = ("Straße", "дорога", *info.class_names[2:])
    save_info(dataclasses.replace(info, class_names=names), folder / "classes.json")
    program = (
        "import sys; from encnet_jax.export.run import export_workdir; "
        "export_workdir(sys.argv[1], sys.argv[2], 'stablehlo')"
    )
    command = [sys.executable, "-X", "utf8=0", "-c", program, folder, tmp_path / "out"]
    # A locale of ASCII, which Python would replace by one of UTF-8.
    locale = dict(LC_ALL="C", PYTHONCOERCECLOCALE="0")
    environ = {**environment(), **locale}
    result = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "дорога" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_stablehlo_runs_with_jax_only_as_its_readme_shows(trained, stablehlo, tmp_path):
    assert len(np.unique(np.concatenate([a.ravel() for a in trained[1]]))) > 1
    np.savez(tmp_path / "in.npz", *[images_of(*shape) for shape in SHAPES])
    # The code of the README, then more images through its `run`.
    program = (
        code_of(stablehlo).replace("520", "24")
        + f"""
import sys
assert labels.shape == (1, 24, 24) and "encnet_jax" not in sys.modules
given = np.load({str(tmp_path / "in.npz")!r})
found = [run(given[name])["labels"] for name in given]
np.savez({str(tmp_path / "out.npz")!r}, *found)
"""
    )
    # Without the project on the path.
    environ = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", program], cwd=stablehlo, env=environ, check=True
    )
    found = np.load(tmp_path / "out.npz")
    for name, expected in zip(found, trained[1]):
        np.testing.assert_array_equal(found[name], expected)


def test_stablehlo_is_for_all_platforms_and_refuses_small_images(stablehlo):
    data = (stablehlo / "model.stablehlo").read_bytes()
    exported = jax.export.deserialize(bytearray(data))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    with pytest.raises(ValueError, match="refining shapes"):
        exported.call(images_of(1, 8, 9))


def test_readme_lists_classes_and_arrays(stablehlo):
    info = load_info(stablehlo / "classes.json")
    assert info.class_names == ("road", "car", "sky") and info.mean == MEAN
    text = (stablehlo / "README.md").read_text()
    for row in (
        "| in | `images` | uint8 (b, h, w, 3) | RGB, 0 to 255 |",
        "| out | `labels` | uint8 (b, h, w) |",
        "| out | `presence` | float32 (b, 3) |",
        "| 1 | car | #008000 |",
        "mean (0.4, 0.5, 0.6) and std (0.3, 0.2, 0.25)",
        "step 7",
    ):
        assert row in text, row
    assert "logits" not in text


def test_readme_says_how_images_of_a_value_range_are_scaled(stablehlo):
    info = load_info(stablehlo / "classes.json")
    assert info.value_range is None
    (shape,) = jax.export.symbolic_args_specs(
        (np.zeros((1, 33, 40, 3), np.uint8),), ("b, h, w, 3",)
    )
    settings = dict(smallest=9, base_size=0, file_format="onnx", checked="")
    settings |= dict(network="encnet", training={})
    card = export_readme("t", info, shape, {}, **settings)
    assert "scale" not in card
    assert "long side" not in card
    sized = export_readme("t", info, shape, {}, **(settings | {"base_size": 704}))
    assert "with a long side of 704 pixels: resize them to that first" in sized
    bounds = {"base_size": 2048, "short_size": 512}
    bounded = export_readme("t", info, shape, {}, **(settings | bounds))
    assert (
        "with a long side of 2048 pixels and a short side of 512 pixels, or less to "
        "keep the other bound: resize them to that first"
    ) in bounded
    info = dataclasses.replace(info, value_range=(0, 4095.5))
    card = export_readme("t", info, shape, {}, **settings)
    assert "from 0 to 4095.5. The model takes uint8: scale such images linearly" in card


def test_readme_of_a_fixed_size_says_how_images_get_it(stablehlo):
    """No other size can be fed to the graph, not that of `encnet predict` either."""
    info = load_info(stablehlo / "classes.json")
    shape = jax.ShapeDtypeStruct((1, 33, 40, 3), np.uint8)
    settings = dict(smallest=9, base_size=520, file_format="onnx", checked="")
    card = export_readme(
        "t [1]", info, shape, {}, network="encnet", training={}, **settings
    )
    assert "height of 33 and a width of 40 pixels: resize images to cover that" in card
    assert "520" not in card
    assert "# t \\[1]\n" in card


def test_readme_of_int8_has_no_scores_of_float32(stablehlo):
    info = load_info(stablehlo / "classes.json")
    shape = jax.ShapeDtypeStruct((1, 33, 40, 3), np.uint8)
    score = dict(dataset="mine", split="val", evaluation="single scale", mean_iou=0.5)
    settings = dict(smallest=9, base_size=0, file_format="onnx", checked="")
    settings |= dict(
        network="encnet", training={"run": "a", "step": 7, "scores": [score]}
    )
    assert "value: 0.5" in export_readme("t", info, shape, {}, **settings)
    int8 = export_readme("t", info, shape, {}, **settings, calibration_images=8)
    assert "model-index" not in int8 and "metrics" not in int8


def test_bounds_of_mmseg_are_those_of_the_export(tmp_path):
    settings = {"protocol": "mmseg", "base_size": 80, "short_size": 20}
    write_workdir(tmp_path, **TINY, evaluation=settings)
    spec = load_trained(tmp_path)
    assert (spec.base_size, spec.short_size) == (80, 20)
    image = np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8)
    found = spec.resize(image)
    assert found.shape == (20, 40, 3)  # 2/3 of it, not the 4/3 that fit the long side
    protocol = Segmenter.from_workdir(tmp_path).protocol
    (view,) = protocol.views(image)
    in_network = (view.pixels * STD + np.array(MEAN)) * 255
    np.testing.assert_allclose(found, in_network, atol=1e-3)
    write_workdir(tmp_path / "free", **TINY, evaluation={"protocol": "mmseg"})
    spec = load_trained(tmp_path / "free")
    assert spec.base_size == 0 and spec.resize(image) is image


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("stride", [8, 14, 16, 32])
def test_size_of_the_comparison_is_one_that_is_padded(align_corners, stride):
    for side in _CHECKED_SIZE:
        assert side % stride != int(align_corners)


def test_comparison_is_of_that_size(trained, tmp_path, monkeypatch):
    read, shapes = export_formats.READERS["stablehlo"], []

    def spied(path):
        apply = read(path)

        def noted(images):
            shapes.append(images.shape)
            return apply(images)

        return noted

    monkeypatch.setitem(export_formats.READERS, "stablehlo", spied)
    export_workdir(trained[0], tmp_path / "out")
    assert shapes == [(2, *_CHECKED_SIZE, 3)]


def test_readme_gives_the_labels_in_files_where_they_differ():
    images = jax.ShapeDtypeStruct((1, 33, 40, 3), np.uint8)
    settings = dict(smallest=9, base_size=0, file_format="onnx", checked="")
    settings |= dict(network="encnet", training={})
    text = export_readme("title", ADE20K, images, {"labels": images}, **settings)
    assert "| label | class | color | label in the data set's files |" in text
    assert "| 0 | wall | #787878 | 1 |" in text and "| 150 |\n" in text


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_output_that_cannot_be_a_folder_is_named(trained, tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--output=.*{name}: .*is a file"):
        export_workdir(trained[0], tmp_path / name)


def test_onnx_takes_images_of_any_size(trained, onnx, monkeypatch):
    monkeypatch.chdir(onnx)
    scope = {}
    exec(code_of(onnx).replace("520", "24"), scope)
    assert scope["labels"].shape == (1, 24, 24)
    predict = jax.jit(load_trained(trained[0]).predict)
    for shape, expected in zip(SHAPES, trained[1]):
        images = images_of(*shape)
        found = scope["session"].run(
            ["labels", "logits", "presence"], {"images": images}
        )
        np.testing.assert_array_equal(found[0], expected)
        wanted = predict(images)
        scale = np.abs(wanted["logits"]).max()
        np.testing.assert_allclose(found[1], wanted["logits"], atol=1e-5 * scale)
        np.testing.assert_allclose(found[2], wanted["presence"], atol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("file_format", ["stablehlo", "onnx"])
def test_graphs_pad_images_as_the_model_does(file_format, align_corners, tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "out"
    workdir.mkdir()
    settings = dict(align_corners=align_corners, pad_to_stride=True, decoder_stride=4)
    write_workdir(workdir, **TINY, **settings, evaluation={"base_size": 40})
    export_workdir(workdir, output, file_format)
    assert "a long side of 40 pixels" in (output / "README.md").read_text()
    graph = getattr(export_formats, f"read_{file_format}")(
        output / f"model.{file_format}"
    )
    model = load_workdir(workdir).model
    padded = make_predict_fn(model, mean=MEAN, std=STD)
    images = [images_of(*shape) for shape in SHAPES]
    for batch in images:
        np.testing.assert_array_equal(graph(batch)["labels"], padded(batch))
    fitting = [model.padded_size(tuple(size)) == tuple(size) for _, *size in SHAPES]
    assert any(fitting)
    model.size_divisor, model.size_remainder = 1, 0
    unpadded = make_predict_fn(model, mean=MEAN, std=STD)
    differ = [(unpadded(batch) != padded(batch)).any() for batch in images]
    assert any(differ)
    assert not any(d for d, fits in zip(differ, fitting) if fits)


def test_onnx_of_one_size_has_that_size(trained, tmp_path):
    text = export_workdir(trained[0], tmp_path / "out", "onnx", size="33x40")
    assert "0 of 1320 labels differ" in text
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert session.get_inputs()[0].shape == [1, 33, 40, 3]
    assert "uint8 (1, 33, 40, 3)" in (tmp_path / "out" / "README.md").read_text()


def test_classifier_gives_probabilities(tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "out"
    workdir.mkdir()
    write_workdir(workdir, "classification", name="resnet14", width=2)
    export_workdir(workdir, output)
    images = images_of(2, 32, 32)
    found = export_formats.read_stablehlo(output / "model.stablehlo")(images)
    trained = load_workdir(workdir)
    model = trained.model_def.merge(trained.params, trained.batch_stats)
    classify = make_classify_fn(model, mean=MEAN, std=STD)
    expected = np.asarray(classify(trained.params, trained.batch_stats, images))
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    np.testing.assert_array_equal(found["labels"], expected.argmax(-1))
    assert load_info(output / "classes.json").task == "classification"


@pytest.mark.parametrize(
    "settings",
    [
        dict(stem="deep", avg_down=True, lateral=True, output_stride=16),
        dict(backbone="resnet18", align_corners=False, se_stages=(3, 4)),
        dict(num_codes=0, se_loss=False, output_stride=32),
        dict(name="fcn"),
        dict(name="pspnet", output_stride=32),
        dict(name="deeplabv3"),
    ],
    ids=lambda settings: settings.get("name", "encnet-" + next(iter(settings))),
)
def test_every_model_can_be_traced_with_symbolic_sizes(settings, tmp_path):
    write_workdir(tmp_path, **(TINY | settings))
    trained = load_trained(tmp_path)
    least = [f"{side} >= {trained.smallest}" for side in "hw"]
    sizes = jax.export.symbolic_shape("b, h, w", constraints=least)
    images = jax.ShapeDtypeStruct((*sizes, 3), jnp.uint8)
    outputs = jax.eval_shape(trained.predict, images)
    assert outputs["labels"].shape == sizes
    assert outputs["logits"].shape == (*sizes, 3)


def test_layers_compute_the_same_with_symbolic_and_known_sizes():
    def layers(x):
        larger = (2 * x.shape[1] + 1, 3 * x.shape[2])
        return [
            max_pool(x),
            adaptive_average_pool(x, 3),
            resize_bilinear(x, larger),
            resize_bilinear(x, larger, align_corners=False),
        ]

    sizes = jax.export.symbolic_shape("h, w", constraints=["h >= 2", "w >= 2"])
    free = jax.ShapeDtypeStruct((2, *sizes, 3), jnp.float32)
    exported = jax.export.export(jax.jit(layers))(free)
    for size in ((7, 10), (20, 4)):
        x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
        for found, expected in zip(exported.call(x), jax.jit(layers)(x)):
            # Weights of known sizes are computed in float64, of symbolic in float32.
            np.testing.assert_allclose(found, expected, atol=1e-5)


LOGITS = np.array([[[[1.0, 3.0, 2.0], [5.0, -9.0, 5.0005]]]], np.float32)


@pytest.mark.parametrize(
    "changes, fault",
    [
        ({}, None),
        ({"labels": np.array([[[1, 0]]])}, None),  # a tie, nearly
        ({"labels": np.array([[[2, 2]]])}, "1 of 2 labels differ"),
        ({"logits": LOGITS + 5e-4}, None),
        ({"logits": LOGITS + 2e-3}, "logits by 2e-04"),
        ({"logits": np.full_like(LOGITS, np.nan)}, "logits by nan"),
        ({"presence": np.array([1e-12, 0.5002])}, "presence by 2e-04"),
        ({"presence": np.array([0, 0.5])}, None),
    ],
)
def test_comparison_finds_what_is_more_than_rounding(changes, fault):
    expected = dict(
        labels=np.array([[[1, 2]]]), logits=LOGITS, presence=np.array([1e-12, 0.5])
    )
    if fault is None:
        assert "0 of 2 labels" in compare(expected | changes, expected)
    else:
        with pytest.raises(UserError, match=fault):
            compare(expected | changes, expected)


def test_export_that_is_wrong_leaves_nothing(trained, tmp_path, monkeypatch):
    def read(path):
        return lambda images: {"labels": np.full(images.shape[:3], 9)}

    monkeypatch.setitem(export_formats.READERS, "stablehlo", read)
    with pytest.raises(UserError, match="labels differ.*nothing was written"):
        export_workdir(trained[0], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_the_extra(trained, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "jax2onnx" else find(name),
    )
    with pytest.raises(
        UserError, match=r"jax2onnx, which is not installed.*\[export\]"
    ):
        export_workdir(trained[0], tmp_path / "out", "onnx")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            dict(file_format="pb"),
            "--format=pb: allowed are stablehlo, onnx, pretrained",
        ),
        (dict(size="32x32"), "--size=32x32: only for --format=onnx"),
        (dict(file_format="onnx", size="32"), "--size=32: must be HEIGHTxWIDTH"),
        (
            dict(file_format="onnx", size="8x32"),
            "--size=8x32: height and width must be at least 9",
        ),
        (dict(step="3"), "3"),
    ],
)
def test_mistake_is_named_and_nothing_is_written(trained, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        export_workdir(trained[0], tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_non_empty_output_is_not_touched(trained, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match=f"--output={output}: is"):
            export_workdir(trained[0], output)
    with pytest.raises(
        UserError, match="--output=.*out: (File exists|Not a directory)"
    ):
        export_workdir(trained[0], tmp_path / "mine.txt" / "out")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_command_without_a_workdir_ends_with_one_line(tmp_path):
    result = run("export.py", f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}")
    assert result.returncode == 2 and len(errors(result)) == 1
    assert "config.json: missing" in errors(result)[0]
