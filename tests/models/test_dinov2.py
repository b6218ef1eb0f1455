"""DINOv2 under the heads: sizes, alignment, dtypes, and what is trained.

Its features are compared with timm's in tests/golden/test_dinov2.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.model_costs import model_costs
from encnet_jax import fit
from encnet_jax.config import default
from encnet_jax.errors import UserError
from encnet_jax.export.run import export_workdir
from encnet_jax.losses import segmentation_loss
from encnet_jax.models import create_model
from encnet_jax.models.dinov2 import DINOv2
from encnet_jax.models.segmentation import Backbone
from encnet_jax.ops.resize import resize_bilinear
from encnet_jax.run.state import flatten_paths, split_model
from tests.random_module import random_module
from tests.small_vit import add_small_vit


@pytest.fixture
def name(monkeypatch):
    return add_small_vit(monkeypatch)


def small(head, name, **settings):
    """Returns a model of three classes on the small backbone."""
    settings = dict(num_classes=3, head_channels=4, num_codes=2) | settings
    return create_model(head, backbone=name, align_corners=False, **settings)


@pytest.mark.parametrize(
    "name, parameters", [("dinov2_vits14", 22_056_192), ("dinov2_vitb14", 86_579_712)]
)
def test_parameters_are_those_that_are_published(name, parameters):
    # Those of timm's vit_small_patch14_dinov2.lvd142m and vit_base_...; the original's
    # have a mask token more.
    model = nnx.eval_shape(lambda: DINOv2(name, rngs=nnx.Rngs(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert sum(sizes) == parameters


def test_operations_are_those_of_its_layers():
    backbone = dict(num_classes=2, backbone="dinov2_vits14", aux_head=False)
    small_head = model_costs("fcn", size=28, head_channels=1, **backbone)
    tokens, patches, c = 5, 4, 384
    block = tokens * 12 * c * c + 2 * tokens**2 * c
    head = patches * (9 * c + 2)
    assert small_head.layers == 12 * block + patches * 3 * 14**2 * c + head


@pytest.mark.parametrize("size", [(1, 1), (28, 42), (40, 61)])
def test_features_cover_the_image_whatever_its_size(name, size):
    backbone = random_module(DINOv2, name)
    assert isinstance(backbone, Backbone)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, *size, 3)), "f4")
    rows, columns = (-(-n // 14) for n in size)
    apply = nnx.jit(lambda backbone, images: backbone(images))
    found = apply(backbone, images)
    assert [f.shape for f in found] == [(1, rows, columns, 8)] * 4
    whole = resize_bilinear(images, (14 * rows, 14 * columns), align_corners=False)
    for stage, expected in zip(found, apply(backbone, whole)):
        np.testing.assert_allclose(stage, expected, atol=1e-6)


def test_logits_lie_where_the_image_has_what_they_show(name):
    """A ramp in the image comes out where it went in, at sizes of no patch."""
    model = random_module(small, "fcn", name, aux_head=False)
    model.eval()
    # Patches by their mean, and nothing after it.
    model.backbone = lambda images: (
        [
            resize_bilinear(images, (70, 98), align_corners=False)
            .reshape(1, 5, 14, 7, 14, 3)
            .mean((2, 4))
        ]
        * 4
    )
    model.head = lambda x, _: x
    ramp = jnp.broadcast_to(jnp.arange(96.0)[None, None, :, None], (1, 69, 96, 3))
    logits = model(ramp).logits
    np.testing.assert_allclose(logits[:, :, 8:-8], ramp[:, :, 8:-8], atol=0.05)


@pytest.mark.parametrize("head", ["encnet", "fcn", "pspnet", "deeplabv3"])
def test_every_head_takes_it(name, head):
    def outputs(images):
        return small(head, name, lateral=True, se_stages=(3, 4))(images)

    output = jax.eval_shape(outputs, jax.ShapeDtypeStruct((2, 45, 61, 3), jnp.float32))
    assert output.logits.shape == output.aux_logits.shape == (2, 45, 61, 3)


def test_settings_that_it_cannot_have_are_refused(name):
    with pytest.raises(UserError, match="decoder_stride=4: allowed is 8, as all stag"):
        small("encnet", name, decoder_stride=4)
    with pytest.raises(
        UserError, match="remat=.5,.: must be a tuple of the stages 1, 2, 3, 4"
    ):
        small("encnet", name, remat=(5,))
    with pytest.raises(UserError, match="output_stride=5: allowed are 8, 16, 32"):
        small("deeplabv3", name, output_stride=5)
    # Of a ResNet, or of a head that is not there: ignored, as everywhere.
    small("pspnet", name, decoder_stride=4, stem="plain", output_stride=16, width=2)


def test_deeplab_dilates_by_the_stride_of_the_backbone(name):
    views = small("deeplabv3", name).head.views
    assert [view.conv.dilation for view in views] == [1, 6, 13, 20]


@pytest.mark.parametrize(
    "head", ["encnet", pytest.param("fcn", marks=pytest.mark.slow)]
)
def test_frozen_backbone_gets_no_gradient_and_the_head_does(name, head):
    def gradients(frozen):
        settings = dict(freeze_backbone=frozen, dropout=0.0)
        model = random_module(small, head, name, **settings)
        model_def, params, batch_stats = split_model(model)
        images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 28, 42, 3)), "f4")
        labels = jnp.asarray(np.random.default_rng(1).integers(0, 3, (2, 28, 42)))

        @jax.jit
        @jax.grad
        def grad(params):
            merged = model_def.merge(params, batch_stats)
            output = merged.forward_low_res(images)
            return segmentation_loss(output, labels, num_classes=3)[0]

        return {
            path: float(jnp.abs(value).max())
            for path, value in flatten_paths(grad(params)).items()
        }

    for frozen in (True, False):
        found = gradients(frozen)
        of_backbone = [v for k, v in found.items() if k.startswith("backbone.")]
        assert any(v > 0 for k, v in found.items() if k.startswith("head."))
        assert any(v > 0 for k, v in found.items() if k.startswith("aux_head."))
        if frozen:
            assert not any(of_backbone)
        else:
            assert any(of_backbone)


@pytest.mark.slow
def test_recomputed_stages_change_no_gradient(name):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 28, 28, 3)), "f4")

    def gradient(remat):
        model = random_module(DINOv2, name, remat=remat)
        graphdef, params = nnx.split(model)

        def loss(params):
            return jnp.square(nnx.merge(graphdef, params)(images)[3][..., 0]).sum()

        count = str(jax.make_jaxpr(jax.grad(loss))(params)).count("remat")
        return jax.jit(jax.grad(loss))(params), count

    (plain, none), (recomputed, some) = gradient(()), gradient((1, 4))
    assert some > none == 0
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_bfloat16_is_float32_but_for_rounding(name):
    model = random_module(DINOv2, name)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 42, 28, 3)), "f4")
    exact = nnx.jit(lambda model: model(images))(model)
    model.set_dtype(jnp.bfloat16)
    for rounded, expected in zip(nnx.jit(lambda model: model(images))(model), exact):
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(rounded.astype("f4"), expected, atol=0.15)
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert {leaf.dtype for leaf in leaves} == {np.dtype("f4")}


def test_dtype_of_a_model_reaches_it(name):
    model = nnx.eval_shape(lambda: small("fcn", name, dtype=jnp.bfloat16))
    layers = [layer for _, layer in nnx.iter_modules(model.backbone)]
    products = [x.dtype for x in layers if isinstance(x, nnx.Linear | nnx.Conv)]
    assert len(products) == 17 and set(products) == {jnp.bfloat16}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'.value' access:DeprecationWarning")  # jax2onnx's
def test_frozen_it_trains_predicts_and_is_exported(name, tmp_path, caplog):
    labels = np.random.default_rng(0).integers(0, 3, (8, 30, 30))
    images = np.stack([labels * 80] * 3, -1).astype(np.uint8)
    config = default()
    config.total_steps = config.eval_every = 2
    config.batch_size = 8
    config.data.base_size = config.data.crop_size = 30
    config.model.backbone, config.model.freeze_backbone = name, True
    config.model.head_channels, config.model.num_codes = 8, 2

    segmenter = fit(images, labels, config, workdir=tmp_path)

    assert "Set model.align_corners=False" in caplog.text
    assert segmenter(images[0]).labels.shape == (30, 30)
    assert segmenter.explain(images[0]).assignment.shape[-1] == 2
    # Compares what it wrote with the model, at any size and at one.
    for file_format, size in (("stablehlo", ""), ("onnx", "30x44")):
        folder = tmp_path / f"{file_format}{size}"
        export_workdir(tmp_path, folder, file_format=file_format, size=size)
    with pytest.raises(UserError, match="--size: must be HEIGHTxWIDTH for ONNX of a"):
        export_workdir(tmp_path, tmp_path / "free", file_format="onnx")
