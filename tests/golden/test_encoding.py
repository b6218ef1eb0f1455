"""The encoding layer and the Context Encoding Module against PyTorch-Encoding."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from encnet_jax.models.encoding import ContextEncoding, Encoding
from encnet_jax.models.layers import set_layer_options

from .cases import load_case, nchw, nhwc
from .modules import PYTORCH_ENCODING, empty, fill, flat, our_name, to_theirs
from .recipe import draw, draw_normals


@pytest.mark.parametrize("variant", ["plain", "spread"])
def test_encoding_layer_and_its_gradients_match(variant, check):
    case = load_case("encoding_layer")
    weights = case.weights(variant)
    layer = empty(Encoding, 16, 8)
    graphdef = nnx.graphdef(layer)

    def objective(x, weights):
        layer = nnx.merge(graphdef, nnx.State(weights))
        encoded = layer(x)
        return jnp.vdot(encoded, case.input("cotangent")), encoded

    x = nhwc(case.input("x"))
    gradient = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))
    (grad_x, grad_weights), encoded = gradient(x, weights)
    check(case, f"{variant}_E", encoded)
    check(case, f"{variant}_grad_x", nchw(grad_x))
    for name, value in grad_weights.items():
        check(case, f"{variant}_grad_{name}", value)


@pytest.fixture(scope="module")
def offset_features() -> np.ndarray:
    """Returns (1, 60, 60, 512) features about 30 with a deviation of 0.5."""
    seed = load_case("encoding_layer_offset").facts["seed"]
    normals = draw_normals("input.offset_x", (1, 512, 60, 60), seed)
    return nhwc((30 + 0.5 * normals).astype(np.float32))


@pytest.mark.parametrize(
    "variant, allowed",
    # Near: separates differences formed after a shift, as here, from squares
    # of the features themselves (0.09). Far: every pixel falls to one codeword and the
    # sum of 3600 residuals near 30 is 1e5, where neighbors in float32 are 0.008 apart;
    # 20 times what the original's direct form loses.
    [("near", 0.01), ("far", 20 * 0.022)],
)
def test_encoding_of_features_with_a_large_offset_matches(
    variant, allowed, offset_features, check
):
    case = load_case("encoding_layer_offset")
    seed = case.facts["seed"]
    if variant == "near":
        normals = draw_normals("input.offset_codewords", (32, 512), seed)
        codewords = (30 + 0.3 * normals).astype(np.float32)
    else:
        codewords = draw("codewords", (32, 512), seed)
    scale = draw("scale", (32,), seed, 0.05 if variant == "near" else 1.0)
    layer = empty(Encoding, 512, 32)
    layer.codewords[...], layer.scale[...] = codewords, scale
    encoded = jax.jit(lambda layer, x: layer(x))(layer, offset_features)
    check(case, f"{variant}_E", encoded, allowed=allowed)


def test_residuals_of_all_codewords_are_never_formed():
    x = jax.ShapeDtypeStruct((1, 60, 60, 512), jnp.float32)
    residuals = 60 * 60 * 32 * 512
    graphdef, params = nnx.split(empty(Encoding, 512, 32))

    def objective(params, x):
        return jnp.square(nnx.merge(graphdef, params)(x)).sum()

    gradient = jax.grad(objective, argnums=(0, 1))
    sizes = _result_sizes(jax.make_jaxpr(gradient)(params, x).jaxpr)
    assert max(sizes) == x.size
    memory = jax.jit(gradient).lower(params, x).compile().memory_analysis()
    # In bytes; the features and their gradient take 7 MB each, the residuals 236.
    assert memory.temp_size_in_bytes < residuals


def _result_sizes(jaxpr) -> list[int]:
    """Returns the number of elements of every result in a program, nested ones too."""
    sizes = []
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            sizes += _result_sizes(inner)
    return sizes


def _module(case, **options) -> nnx.Module:
    module = empty(ContextEncoding, 32, num_codes=8, num_classes=7)
    set_layer_options(module, **options)
    fill(module, case.weights(), PYTORCH_ENCODING)
    return module


def test_context_encoding_in_eval_mode_matches(check):
    case = load_case("enc_module")
    module = _module(case)
    module.eval()

    @jax.jit
    def apply(module, x):
        encoded, _ = module.encode(x)
        return *module(x), encoded, jax.nn.sigmoid(module.gate(encoded))

    results = apply(module, nhwc(case.input("x")))
    names = ("feature", "se_logits", "encoded", "gamma")
    for name, value in zip(names, results):
        check(case, f"eval_{name}", nchw(value) if value.ndim == 4 else value)


@pytest.mark.parametrize("unbiased", [False, True], ids=["biased", "unbiased"])
def test_context_encoding_in_train_mode_matches(unbiased, check):
    case = load_case("enc_module")
    module = _module(case, unbiased_running_var=unbiased)
    model_def, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def gradient(params, x):
        def objective(params, x):
            module = nnx.merge(model_def, params, rest, copy=True)
            feature, se_logits = module(x)
            total = jnp.vdot(feature, nhwc(case.input("cotangent_feature")))
            total += jnp.vdot(se_logits, case.input("cotangent_se"))
            batch_stats = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
            return total, (feature, se_logits, batch_stats)

        return jax.grad(objective, argnums=(0, 1), has_aux=True)(params, x)

    (grads, grad_x), (feature, se_logits, batch_stats) = gradient(
        params, nhwc(case.input("x"))
    )
    check(case, "train_feature", nchw(feature))
    check(case, "train_se_logits", se_logits)
    check(case, "train_grad_x", nchw(grad_x))
    grads, batch_stats = flat(nnx.to_pure_dict(grads)), flat(batch_stats)
    kind = "unbiased" if unbiased else "biased"
    for theirs in case.facts["state_dict"]:
        ours = our_name(theirs, PYTORCH_ENCODING)
        if ours in grads:
            check(case, f"train_grad.{theirs}", to_theirs(ours, grads[ours]))
        elif theirs.endswith("running_mean"):
            check(case, f"train_new.{theirs}", batch_stats[ours])
        elif theirs.endswith("running_var"):
            check(case, f"train_new.{theirs}_{kind}", batch_stats[ours])
