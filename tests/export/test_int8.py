"""int8 ONNX graphs: what is quantized, by which ranges, on which images."""

import contextlib
import io
import re

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from encnet_jax.commands import export as export_command
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.errors import UserError
from encnet_jax.export.calibration import CalibrationImages, find_calibration_images
from encnet_jax.export.formats import read_onnx, write_onnx
from encnet_jax.export.input_size import (
    crop_resizer,
    long_side_resizer,
    protocol_resizer,
)
from encnet_jax.export.quantize import label_agreement, quantize
from encnet_jax.export.run import export_workdir, load_trained
from encnet_jax.inference.predict_fn import preprocess
from encnet_jax.inference.tta import MmsegProtocol, PyTorchEncodingProtocol
from tests.parsed_flags import run_command
from tests.small_vit import add_small_vit
from tests.small_workdir import TINY, write_workdir

pytestmark = pytest.mark.filterwarnings(
    "ignore:'.value' access is now deprecated:DeprecationWarning:jax2onnx"
)
INFO = DatasetInfo("mine", ("road", "car", "sky"), voc_colormap(3), {})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    write_workdir(workdir, **TINY, data={"base_size": 40})
    return workdir


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Returns a folder of 20 images, and other files."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def exported(trained, photos, tmp_path_factory):
    """Returns the folder that `encnet export --int8` wrote, and what it said."""
    output = tmp_path_factory.mktemp("int8") / "model"
    (output.parent / "float32.onnx").write_text("mine")
    given = dict(workdir=trained, output=output, format="onnx", int8=True)
    given |= dict(calibration=photos, calibration_images=16)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        run_command(patch, export_command, **given)
    return output, said.getvalue()


@pytest.fixture(scope="module")
def float32(trained, tmp_path_factory):
    """Returns the graph before quantization."""
    path = tmp_path_factory.mktemp("float32") / "model.onnx"
    spec = load_trained(trained)
    sizes = jax.export.symbolic_shape("b, h, w", constraints=["h >= 9", "w >= 9"])
    write_onnx(spec.predict, jax.ShapeDtypeStruct((*sizes, 3), np.uint8), path)
    return path


def write_product(path):
    """Writes a graph: uint8 images (1, h, w, 3) times a (3, 2) matrix, then a square.

    The square multiplies two activations.
    """
    weights = np.array([[0.5, 2.0], [-1.27, 0.0], [0.25, -2.54]], np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Transpose", ["y"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["t", "y"], ["square"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "product",
        [value("images", TensorProto.UINT8, [1, "h", "w", 3])],
        [value("square", TensorProto.FLOAT, [1, "h", 2, 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)


def test_scales_are_those_computed_by_hand(tmp_path):
    write_product(tmp_path / "product.onnx")
    images = [np.full((2, 2, 3), value, np.uint8) for value in (51, 102)]
    quantize(tmp_path / "product.onnx", tmp_path / "int8.onnx", images)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8.onnx", "product.onnx"]
    graph = onnx.load(tmp_path / "int8.onnx").graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    pairs = {n.input[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    (weights,) = [name for name in pairs if name in stored]
    scale, zero = (stored[name] for name in pairs[weights].input[1:])
    # The largest of each column is 127 steps.
    np.testing.assert_allclose(scale, [1.27 / 127, 2.54 / 127], rtol=1e-6)
    assert not zero.any() and stored[weights].dtype == np.int8
    np.testing.assert_array_equal(stored[weights], [[50, 100], [-127, 0], [25, -127]])
    # Activations from 0 to 102, in 255 steps.
    (quantized,) = [n for n in graph.node if n.input[0] == "x"]
    scale, zero = (stored[name] for name in quantized.input[1:])
    np.testing.assert_allclose(scale, 102 / 255, rtol=1e-6)
    assert zero == 0 and zero.dtype == np.uint8
    # A matrix multiplication of two activations has no weights.
    (square,) = [n for n in graph.node if n.output[0] == "square"]
    assert square.op_type == "MatMul" and square.input[0] == "t"
    assert {n.op_type for n in graph.node if "t" in n.output} == {"Transpose"}


def test_encoding_and_resizing_stay_float32(exported):
    graph = onnx.load(exported[0] / "model.onnx").graph
    made_by = {name: n.op_type for n in graph.node for name in n.output}
    inputs = {
        kind: {made_by.get(n.input[0]) for n in graph.node if n.op_type == kind}
        for kind in ("Conv", "Gemm", "Einsum")
    }
    assert inputs["Conv"] == inputs["Gemm"] == {"DequantizeLinear"}
    assert inputs["Einsum"] and "DequantizeLinear" not in inputs["Einsum"]


def test_agreement_is_reported_and_right(photos, exported, float32):
    output, text = exported
    assert sorted(p.name for p in output.parent.iterdir()) == ["float32.onnx", "model"]
    assert (output.parent / "float32.onnx").read_text() == "mine"
    assert sorted(p.name for p in output.iterdir()) == [
        "README.md",
        "classes.json",
        "model.onnx",
    ]
    runs = [read_onnx(path) for path in (output / "model.onnx", float32)]
    images = images_of(find_calibration_images(photos, 16))
    labels = [np.stack([run(i[None])["labels"] for i in images]) for run in runs]
    share = 100 * np.mean(labels[0] == labels[1])
    assert 80 < share < 100  # so that it is no copy
    line = f"int8 keeps {share:.1f} % of the labels on 16 calibration images"
    readme = (output / "README.md").read_text()
    assert line in text and line in readme
    assert "0 of 13534 labels differ" in text
    assert "Calibrated on 16 images." in readme
    assert re.search(r"^ *- .?int8", readme, re.M)  # a tag of the hub
    assert "Computed in float32." not in readme


def test_same_images_give_the_same_file(photos, exported, float32, tmp_path):
    images = images_of(find_calibration_images(photos, 16))
    quantize(float32, tmp_path / "again.onnx", images)
    found = (tmp_path / "again.onnx").read_bytes()
    assert found == (exported[0] / "model.onnx").read_bytes()
    quantize(float32, tmp_path / "other.onnx", images[:3])
    assert found != (tmp_path / "other.onnx").read_bytes()


def images_of(paths):
    return [np.asarray(Image.open(path)) for path in paths]


def test_agreement_counts_pixels():
    images = [np.zeros((1, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)]
    zeros = lambda batch: {"labels": np.zeros(batch.shape[:3])}  # noqa: E731
    first = lambda batch: {"labels": np.indices(batch.shape[:3])[2] > 0}  # noqa: E731
    assert label_agreement(zeros, first, images) == 3 / 8


def test_images_are_spread_over_the_folder(photos, caplog):
    names = [path.name for path in find_calibration_images(photos, 16)]
    assert names[:5] == ["00.png", "01.png", "02.png", "03.png", "05.png"]
    assert len({*names}) == 16 and not caplog.records
    assert len(find_calibration_images(photos, 64)) == 20
    assert len(find_calibration_images(photos, 2)) == 2
    assert "2 calibration images: with fewer than 16" in caplog.text


@pytest.mark.parametrize("align_corners", [False, True])
def test_images_are_resized_as_in_prediction(align_corners):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8)
    found = long_side_resizer(40, align_corners)(pixels)
    assert found.shape == (20, 40, 3) and found.dtype == np.uint8
    in_network = preprocess(pixels[None], (0.0,) * 3, (1.0,) * 3, 40, align_corners)
    np.testing.assert_allclose(found, 255 * np.asarray(in_network[0]), atol=0.5001)
    assert long_side_resizer(0, align_corners)(pixels) is pixels


@pytest.mark.parametrize("protocol", [PyTorchEncodingProtocol, MmsegProtocol])
@pytest.mark.parametrize("align_corners", [False, True])
def test_images_are_resized_as_for_windows(protocol, align_corners):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8)
    sizes = dict(base_size=40, crop_size=16, scales=(0.5, 1.0), stride=0, flip=False)
    windows = protocol(
        **sizes, align_corners=align_corners, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    found = protocol_resizer(windows)(pixels)
    assert found.shape == (20, 40, 3) and found.dtype == np.uint8
    _, view = windows.views(pixels)
    np.testing.assert_allclose(found, 255 * view.pixels[:20, :40], atol=0.5001)


def test_one_size_is_cropped_at_the_center():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    np.testing.assert_array_equal(crop_resizer((10, 10))(pixels), 200)


def test_images_are_scaled_and_checked(tmp_path):
    Image.fromarray(np.full((9, 9), 500, np.uint16)).save(tmp_path / "a.png")
    info = DatasetInfo("m", ("a", "b"), voc_colormap(2), {}, value_range=(0, 1000))
    paths = [tmp_path / "a.png"]
    images = CalibrationImages(paths, info, long_side_resizer(0, False), 9)
    assert len(images) == 1 and abs(int(images[0][0, 0, 0]) - 127.5) <= 0.5
    assert len(images[:]) == 1
    images = CalibrationImages(paths, info, long_side_resizer(0, False), 17)
    with pytest.raises(UserError, match=r"a.png: 9x9 pixels .* at least 17"):
        images.check()


@pytest.mark.slow
def test_classifier(photos, tmp_path):
    workdir = tmp_path / "classifier"
    workdir.mkdir()
    data = {"crop_size": 32}
    write_workdir(workdir, "classification", name="resnet14", width=2, data=data)
    output = tmp_path / "out"
    text = export_workdir(workdir, output, "onnx", calibration=photos)
    assert "on 20 calibration images" in text
    outputs = read_onnx(output / "model.onnx")(np.zeros((2, 32, 32, 3), np.uint8))
    assert outputs["probabilities"].shape == (2, 3)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(format="stablehlo"), "--int8: only for --format=onnx, not stablehlo"),
        (dict(calibration=None), "--int8: needs --calibration=DIR"),
        (dict(calibration="{tmp}/none"), "--calibration=.*none: no such folder"),
        (dict(calibration="{tmp}/file"), "--calibration=.*file: no such folder"),
        (dict(calibration="{tmp}/empty"), "--calibration=.*empty: .*without images"),
        (dict(calibration="{tmp}/broken"), "broken.a.png: "),
        (dict(int8=False), "--calibration: only with --int8"),
        (
            dict(int8=False, calibration=None, calibration_images=3),
            "--calibration_images: only with --int8",
        ),
    ],
)
def test_mistake_is_named_and_nothing_is_written(
    trained, tmp_path, monkeypatch, given, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    settings = dict(format="onnx", int8=True, calibration="{tmp}/empty") | given
    settings = {
        key: value.format(tmp=tmp_path) if isinstance(value, str) else value
        for key, value in settings.items()
        if value not in (None, False)
    }
    settings |= dict(workdir=trained, output=tmp_path / "out")
    with pytest.raises(UserError, match=message):
        run_command(monkeypatch, export_command, **settings)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_graph_of_one_size(trained, photos, tmp_path, monkeypatch, capsys):
    given = dict(workdir=trained, output=tmp_path / "out", format="onnx", int8=True)
    given |= dict(calibration=photos, calibration_images=2, size="24x32")
    run_command(monkeypatch, export_command, **given)
    assert "on 2 calibration images" in capsys.readouterr().out
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert "QuantizeLinear" in {node.op_type for node in graph.node}
    shape = graph.input[0].type.tensor_type.shape
    assert [d.dim_value for d in shape.dim] == [1, 24, 32, 3]
    # Nor with all sizes known are resizing and encoding quantized.
    made_by = {name: n.op_type for n in graph.node for name in n.output}
    products = [n for n in graph.node if n.op_type in ("MatMul", "Einsum")]
    assert products
    assert not any(made_by.get(n.input[0]) == "DequantizeLinear" for n in products)


@pytest.mark.slow
def test_vision_transformer(photos, tmp_path, monkeypatch, capfd):
    name = add_small_vit(monkeypatch)
    (tmp_path / "run").mkdir()
    settings = TINY | dict(backbone=name, aux_head=False)
    write_workdir(tmp_path / "run", data={"base_size": 40}, **settings)
    given = dict(size="28x42", calibration=photos, calibration_images=16)
    text = export_workdir(tmp_path / "run", tmp_path / "out", "onnx", **given)
    assert "onnxruntime" not in capfd.readouterr().err  # of each folded constant
    assert float(re.search(r"int8 keeps ([\d.]+) %", text)[1]) > 80
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    made_by = {name: n.op_type for n in graph.node for name in n.output}
    # Four linear layers a block are quantized, and no multiplication in attention.
    linear = [n for n in graph.node if n.op_type == "Gemm"]
    assert len(linear) >= 4 * 4
    assert {made_by.get(n.input[0]) for n in linear} == {"DequantizeLinear"}
    products = [n for n in graph.node if n.op_type == "MatMul"]
    assert len(products) >= 2 * 4
    assert "DequantizeLinear" not in {made_by.get(n.input[0]) for n in products}


def test_folder_that_is_no_count_is_named(photos):
    with pytest.raises(UserError, match="--calibration_images=0: must be at least 1"):
        find_calibration_images(photos, 0)
