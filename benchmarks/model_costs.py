"""Parameters and multiply-adds of the models: python -m benchmarks.model_costs.

    python -m benchmarks.model_costs [--size=480] [--classes=150] [--backbones=...]

Prints a Markdown table. Nothing runs or compiles: operations are counted in the traced
network. Convolutions and matrix products count, including padding zeros, as in the
figures that torchvision publishes (`tests/models/test_heads.py` compares the two; XLA's
`cost_analysis` excludes padding and includes norms and activations). Resizing and
pooling are listed separately: here they are small matrix products, which others do not
count.

The network is that of prediction, without the auxiliary head. EncNet has 32 codewords
and no lateral links; with `--stem=plain` the stem is one 7x7 convolution.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from encnet_jax import cli
from encnet_jax.models import create_model
from encnet_jax.models.registry import BACKBONES, MODELS, SEGMENTATION_MODELS
from encnet_jax.models.settings import class_of, settings_of

_SIZE = flags.DEFINE_integer("size", 480, "Height and width of the image.")
_CLASSES = flags.DEFINE_integer("classes", 150, "Number of classes.")
_BACKBONES = flags.DEFINE_list("backbones", ["resnet50", "resnet101"], "Backbones.")
_STEM = flags.DEFINE_string("stem", "deep", "deep or plain.")


class Costs(NamedTuple):
    """Costs of one image.

    Attributes:
        parameters: Learnable parameters.
        layers: Multiply-adds of layers with parameters.
        resizing: Multiply-adds of products with constants: resizing and pooling.
    """

    parameters: int
    layers: int
    resizing: int


def model_costs(name: str, *, size: int, **settings: Any) -> Costs:
    """Returns the costs of a model for one square image.

    Args:
        name: See `create_model`.
        size: Height and width in pixels.
        **settings: Arguments of `create_model`.
    """
    model = nnx.eval_shape(lambda: create_model(name, conv_impl="lax", **settings))
    model.eval()
    graphdef, state = nnx.split(model)

    def apply(state: nnx.State, image: jax.Array) -> Any:
        return nnx.merge(graphdef, state)(image)

    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    traced = jax.make_jaxpr(apply)(state, image)
    layers, resizing = _multiply_adds(traced.jaxpr, set(traced.jaxpr.constvars))
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    return Costs(sum(sizes), layers, resizing)


def _multiply_adds(jaxpr: Jaxpr, constants: set) -> tuple[int, int]:
    """Counts multiply-adds of two variable operands, and with a constant operand."""
    layers = resizing = 0

    def is_constant(operand: Any) -> bool:
        return isinstance(operand, Literal) or operand in constants

    for equation in jaxpr.eqns:
        inputs = equation.invars
        if all(map(is_constant, inputs)):
            constants.update(equation.outvars)
        count = _operation_cost(equation)
        if any(map(is_constant, inputs)):
            resizing += count
        else:
            layers += count
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                inner = inner.jaxpr
                inner_constants = {
                    parameter
                    for parameter, operand in zip(inner.invars, inputs)
                    if is_constant(operand)
                }
                counts = _multiply_adds(inner, inner_constants | set(inner.constvars))
                layers, resizing = layers + counts[0], resizing + counts[1]
    return layers, resizing


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr)


def _operation_cost(equation: Any) -> int:
    """Returns the multiply-adds of a product or convolution, 0 of other operations."""
    kind = equation.primitive.name
    if kind not in ("conv_general_dilated", "dot_general"):
        return 0
    left, right = (operand.aval.shape for operand in equation.invars)
    outputs = math.prod(equation.outvars[0].aval.shape)
    if kind == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        return outputs * math.prod(left[axis] for axis in contracted)
    outputs_axis = equation.params["dimension_numbers"].rhs_spec[0]
    return outputs * math.prod(right) // right[outputs_axis]


def table(
    *, size: int, num_classes: int, backbones: list[str], stem: str = "deep"
) -> str:
    """Formats the costs of all segmentation models as a Markdown table."""
    lines = [
        f"| backbone | model | parameters, M | multiply-adds at {size}x{size}, G "
        "| resizing, G |",
        "|---|---|---|---|---|",
    ]
    rows: list[tuple[str, dict[str, Any]]] = []
    for name in SEGMENTATION_MODELS:
        rows.append((name, {}))
        if "decoder_stride" in settings_of(MODELS[name]):
            rows.append((name, {"decoder_stride": 4}))
    for backbone in backbones:
        demands = getattr(class_of(BACKBONES[backbone]), "network_checks", {})
        for name, settings in rows:
            if any(demands[k](v) for k, v in settings.items() if k in demands):
                continue
            costs = model_costs(
                name,
                size=size,
                num_classes=num_classes,
                backbone=backbone,
                stem=stem,
                aux_head=False,
                **settings,
            )
            title = ", ".join([name, *(f"`{k}={v}`" for k, v in settings.items())])
            lines.append(
                f"| {backbone} | {title} | {costs.parameters / 1e6:.2f} "
                f"| {costs.layers / 1e9:.1f} | {costs.resizing / 1e9:.1f} |"
            )
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    cli.reject_positional(arguments)
    print(
        table(
            size=_SIZE.value,
            num_classes=_CLASSES.value,
            backbones=_BACKBONES.value,
            stem=_STEM.value,
        )
    )


if __name__ == "__main__":
    cli.run(main)
