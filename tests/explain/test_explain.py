"""`Segmenter.explain`: each value is the one that its definition gives."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from encnet_jax import Segmenter, UserError
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.data.scenes import draw
from encnet_jax.explain.explanation import Explanation
from encnet_jax.inference.tta import MmsegProtocol, PyTorchEncodingProtocol
from encnet_jax.models import create_model
from encnet_jax.ops.normalize import normalize
from encnet_jax.run.mean_gate import MeanGate
from tests.commands import ROOT
from tests.make_scenes_model import FOLDER
from tests.random_module import random_module

TINY = dict(backbone="tiny", stem="plain", width=4, head_channels=8, num_codes=3)
INFO = DatasetInfo("mine", tuple("abc"), voc_colormap(3), {})
WINDOWS = dict(
    base_size=64, crop_size=32, scales=(1.0,), flip=False, stride=16,
    mean=INFO.mean, std=INFO.std,
)  # fmt: skip


def create(name="encnet", **settings):
    settings = {**TINY, **settings}
    model = random_module(create_model, name=name, num_classes=3, **settings)
    model.eval()
    return model


def noise(*size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*size, 3), np.uint8)


def view_of(model, pixels):
    images = normalize(jnp.asarray(pixels[None], jnp.float32), INFO.mean, INFO.std)
    output, view = model.forward_with_context(images)
    return output, jax.tree.map(np.asarray, view)


def test_explanation_holds_what_the_module_computes():
    model = create()
    pixels, other = noise(48, 64), noise(32, 32, seed=1)
    explanation = Segmenter(model, INFO).explain(pixels, context_from=other)
    _, view = view_of(model, pixels)
    _, view_of_other = view_of(model, other)
    assert explanation.assignment.shape == (6, 8, 3)
    np.testing.assert_allclose(explanation.assignment, view.assignment[0], atol=5e-5)
    np.testing.assert_allclose(explanation.gate, view.gate[0], rtol=5e-5)
    np.testing.assert_allclose(
        explanation.replacement, view_of_other.gate[0], rtol=5e-5
    )
    plain = Segmenter(model, INFO)(pixels)
    np.testing.assert_array_equal(explanation.segmentation.labels, plain.labels)
    np.testing.assert_array_equal(explanation.presence, plain.presence)


def test_images_are_padded_as_in_prediction():
    model = create(align_corners=False, pad_to_stride=True)
    segmenter, pixels = Segmenter(model, INFO), noise(44, 61)
    explanation = segmenter.explain(pixels, context_from=pixels)
    images = normalize(jnp.asarray(pixels[None], jnp.float32), INFO.mean, INFO.std)
    padded = jnp.zeros((1, 48, 64, 3)).at[:, :44, :61].set(images)
    _, view = model.forward_with_context(padded)
    np.testing.assert_allclose(explanation.gate, view.gate[0], rtol=5e-5)
    # Under its own gate the prediction is the same.
    plain = segmenter(pixels).labels
    np.testing.assert_array_equal(explanation.labels_without_context, plain)


def test_reference_is_the_mean_gate_of_its_images(tmp_path):
    model, pixels = create(), noise(32, 32)
    segmenter = Segmenter(model, INFO)
    others = [noise(32, 32 + 8 * n, seed=n) for n in range(3)]
    Image.fromarray(others[0]).save(tmp_path / "a.png")
    gates = [view_of(model, other)[1].gate[0] for other in others]
    explanation = segmenter.explain(pixels, [tmp_path / "a.png", *others[1:]])
    np.testing.assert_allclose(explanation.replacement, np.mean(gates, 0), rtol=5e-5)
    assert "3 images" in explanation.replaced_by
    mean_gate = segmenter.mean_gate(others)
    same = segmenter.explain(pixels, mean_gate)
    np.testing.assert_array_equal(same.replacement, explanation.replacement)
    for one in (tmp_path / "a.png", str(tmp_path / "a.png"), others[0]):
        found = segmenter.explain(pixels, one)
        np.testing.assert_allclose(found.replacement, gates[0], rtol=5e-5)


def test_channels_and_transitions_are_sorted():
    labels = np.uint8([[0, 0, 0, 1], [2, 2, 1, 1]])
    without = np.uint8([[0, 1, 1, 1], [0, 2, 0, 0]])
    segmenter = Segmenter(create(), INFO)
    segmentation = segmenter(noise(2, 4))
    object.__setattr__(segmentation, "labels", labels)
    gate, mean = np.float32([0.5, 0.9, 0.1, 0.3]), np.float32([0.5, 0.2, 0.9, 0.2])
    explanation = Explanation(segmentation, None, gate, mean, "", without)
    expected = [[0, 1, 1, 0], [1, 0, 1, 1]]
    np.testing.assert_array_equal(explanation.changed, np.array(expected, bool))
    assert explanation.transitions == ((0, 1, 2), (1, 0, 2), (2, 0, 1))
    assert [c.channel for c in explanation.raised] == [1, 3]
    assert explanation.raised[0].difference == pytest.approx(0.7)
    assert [c.channel for c in explanation.lowered] == [2]
    assert explanation.lowered[0].difference == pytest.approx(-0.8)


@pytest.mark.parametrize("protocol", [PyTorchEncodingProtocol, MmsegProtocol])
def test_windows_have_gates_of_their_own(protocol):
    model, pixels = create(align_corners=False), noise(32, 64)
    short = {} if protocol is PyTorchEncodingProtocol else {"short_size": 32}
    windows = protocol(**{**WINDOWS, "stride": 32}, align_corners=False, **short)
    segmenter = Segmenter(model, INFO, protocol=windows)
    other = noise(32, 32, seed=1)
    explanation = segmenter.explain(pixels, context_from=other)
    # Two windows side by side, each at its own size.
    views = [view_of(model, pixels[:, x : x + 32])[1] for x in (0, 32)]
    gate = np.mean([view.gate[0] for view in views], 0)
    np.testing.assert_allclose(explanation.gate, gate, rtol=1e-4)
    assert explanation.assignment.shape == (32, 64, 3)
    np.testing.assert_allclose(explanation.assignment.sum(-1), 1, rtol=1e-5)
    # In the middle of a cell of the features nothing is interpolated but by a half.
    for place, view in enumerate(views):
        cells = np.log(view.assignment[0])
        corner = np.exp(cells[0, 0]) / np.exp(cells[0, 0]).sum()
        found = explanation.assignment[0, 32 * place]
        np.testing.assert_allclose(found, corner, rtol=1e-3)
    # Both windows get the gate of the other image, as each alone would.
    halves = [
        Segmenter(model, INFO).explain(pixels[:, x : x + 32], context_from=other)
        for x in (0, 32)
    ]
    expected = np.hstack([half.labels_without_context for half in halves])
    assert (explanation.labels_without_context == expected).mean() > 0.995


def test_mirrored_windows_share_a_gate():
    model, pixels = create(align_corners=False), noise(32, 32)
    windows = PyTorchEncodingProtocol(
        **{**WINDOWS, "base_size": 32, "flip": True}, align_corners=False
    )
    explanation = Segmenter(model, INFO, protocol=windows).explain(
        pixels, context_from=pixels
    )
    gates = [view_of(model, image)[1].gate[0] for image in (pixels, pixels[:, ::-1])]
    np.testing.assert_allclose(explanation.gate, np.mean(gates, 0), rtol=1e-4)


def test_assignment_of_mirror_images_is_their_mean_not_their_product():
    model, half = create(align_corners=False), noise(32, 16)
    pixels = np.concatenate([half, half[:, ::-1]], 1)  # its own mirror image
    found = []
    for flip in (False, True):
        windows = PyTorchEncodingProtocol(
            **{**WINDOWS, "base_size": 32, "flip": flip}, align_corners=False
        )
        segmenter = Segmenter(model, INFO, protocol=windows)
        found.append(segmenter.explain(pixels, context_from=pixels).assignment)
    once, twice = found
    np.testing.assert_allclose(once.sum(-1), 1, rtol=1e-5)
    # Of the network, not of the image, mirrored windows differ a little.
    mean = np.sqrt(once * once[:, ::-1])
    mean /= mean.sum(-1, keepdims=True)
    np.testing.assert_allclose(twice, mean, atol=1e-3)
    assert once.max() > 1.2 * once.min()


@pytest.mark.parametrize("windows", [False, True])
def test_network_without_codewords_has_gate_and_figure(windows):
    protocol = (
        PyTorchEncodingProtocol(**WINDOWS, align_corners=True) if windows else None
    )
    model = create(num_codes=0, se_loss=False)
    segmenter = Segmenter(model, INFO, protocol=protocol)
    explanation = segmenter.explain(noise(40, 64), context_from=noise(32, 32))
    assert explanation.assignment is None and explanation.presence is None
    assert explanation.gate.shape == (8,)
    assert explanation.figure().width == 1000


def test_gate_of_what_a_network_has_no_module_for_is_refused():
    segmenter = Segmenter(create("fcn"), INFO)
    image = noise(16, 16)
    for call in (
        lambda: segmenter.explain(image, context_from=image),
        lambda: segmenter.explain(image),
        lambda: segmenter.mean_gate([image]),
    ):
        with pytest.raises(UserError, match="^FCN: has no Context Encoding Module"):
            call()


def test_what_takes_the_place_of_the_gate_must_be_known(tmp_path):
    segmenter, image = Segmenter(create(), INFO), noise(16, 16)
    with pytest.raises(UserError, match="no mean gate .*reference images, or context"):
        segmenter.explain(image)
    with pytest.raises(UserError, match="at most one"):
        segmenter.explain(image, [image], image)
    with pytest.raises(UserError, match="^reference: no images"):
        segmenter.explain(image, [])
    with pytest.raises(UserError, match="3 channels; .* have 8"):
        segmenter.explain(image, MeanGate(np.ones(3, np.float32), 1))
    with pytest.raises(UserError, match="missing.png"):
        segmenter.explain(image, [tmp_path / "missing.png"])
    with pytest.raises(TypeError, match="NoneType"):
        segmenter.explain(image, [None])


def test_stored_mean_gate_is_the_default(scenes):
    stored = json.loads((FOLDER / "config.json").read_text())["training"]["mean_gate"]
    explanation = scenes.explain(draw(99, 0, kind=1).image)
    np.testing.assert_allclose(explanation.replacement, stored["gate"], rtol=1e-6)
    assert f"the mean of {stored['images']} images" == explanation.replaced_by
    assert explanation.changed.any()


def test_explaining_leaves_the_prediction_of_a_segmenter(scenes):
    image = draw(99, 1).image
    before = scenes(image).labels
    scenes.explain(image)
    np.testing.assert_array_equal(scenes(image).labels, before)
    assert scenes.mean_gate() is not None


def test_nothing_of_it_is_imported_before_it_is_needed():
    program = (
        "import sys; import encnet_jax.predict.write, encnet_jax.train.trainer\n"
        "print(*(m for m in sys.modules if m.startswith('encnet_jax.explain')))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.split()
