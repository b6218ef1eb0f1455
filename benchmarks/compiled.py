"""The programs that benchmarks compile: a function, and the shapes of its arguments.

Models are made abstractly and get random arrays here, since drawing weights by JAX
would take longer than what is measured.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from encnet_jax.data.dataset_info import ADE20K
from encnet_jax.inference.folding import InferenceModel
from encnet_jax.inference.predict_fn import make_label_fn
from encnet_jax.models import create_model
from encnet_jax.models.encoding import Encoding
from encnet_jax.models.layers import set_conv_impl, set_layer_options
from encnet_jax.models.resnet import ResNet
from encnet_jax.optimizer import create_optimizer, poly_schedule
from encnet_jax.run.sharding import batch_sharded, replicated
from encnet_jax.run.state import abstract_arrays, create_train_state, split_model
from encnet_jax.train.step import make_train_step

CLASSES = ADE20K.num_classes


class Program(NamedTuple):
    """A function to compile.

    Attributes:
        function: Jitted.
        arguments: Its arguments, trees of shapes and dtypes.
    """

    function: Any
    arguments: tuple[Any, ...]

    def compile(self, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
        """Compiles for the shapes alone: nothing is allocated.

        Args:
            options: Flags of the compiler.
        """
        return self.function.lower(*self.arguments).compile(compiler_options=options)

    def spread(self, mesh: Mesh) -> Self:
        """Returns the program for a batch over the devices of a mesh.

        The last argument is the batch; all devices have copies of the others.
        """
        *others, batch = self.arguments
        copies = abstract_arrays(tuple(others), replicated(mesh))
        split = abstract_arrays(batch, batch_sharded(mesh))
        return self._replace(arguments=(*copies, split))


class Memory(NamedTuple):
    """What the compiler says that a program takes, in bytes.

    Attributes:
        arguments: Of a step, the state and the batch.
        outputs: Of a step, the state behind it; donated arguments make room for it.
        temporary: Everything in between: features, gradients, scratch.
        peak: Arguments, outputs and temporaries, less what they share.
    """

    arguments: int
    outputs: int
    temporary: int
    peak: int


def compiled_memory(compiled: jax.stages.Compiled) -> Memory:
    """Returns the compiler's own analysis of a program."""
    found: Any = compiled.memory_analysis()
    sizes = (
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.temp_size_in_bytes,
    )
    return Memory(*sizes, sum(sizes) - found.alias_size_in_bytes)


def largest_batch(peaks: dict[int, int], capacity: float, unit: int) -> int | None:
    """Returns the largest batch whose step fits; 0: none, None: not known.

    Args:
        peaks: Number of images -> bytes of a step. Memory is linear in the batch, so
            two numbers decide.
        capacity: Bytes of a device.
        unit: The batch must be a multiple of it.
    """
    few, many = min(peaks), max(peaks)
    if peaks[many] <= peaks[few]:  # one batch, or so small that padding decides
        return None
    an_image = (peaks[many] - peaks[few]) / (many - few)
    largest = few + (capacity - peaks[few]) / an_image
    return max(0, int(largest // unit * unit))


def training(
    *,
    size: tuple[int, int],
    batch: int,
    dtype: DTypeLike,
    grad_accum_steps: int = 1,
    **settings: Any,
) -> Program:
    """One training step of EncNet on images of ADE20K's classes.

    Args:
        size: Height and width of the images.
        batch: Images a step.
        dtype: Dtype of the computation.
        grad_accum_steps: See `make_train_step`.
        **settings: Of `create_model`.
    """
    model_def, params, batch_stats = split_model(encnet(dtype, settings))
    tx = create_optimizer(poly_schedule(0.01, 1000))
    step = make_train_step(model_def, tx, ADE20K, grad_accum_steps=grad_accum_steps)
    state = jax.eval_shape(
        lambda p, s: create_train_state(p, s, tx), params, batch_stats
    )
    images = {
        "images": jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((batch, *size), jnp.int32),
    }
    seed = {"seed": jax.ShapeDtypeStruct((), jnp.uint32)}
    return Program(step, (state, seed, images))


def inference(
    *, size: tuple[int, int], batch: int, dtype: DTypeLike, **settings: Any
) -> Program:
    """Labels of whole images, as `predict.py` gets them; see `training`."""
    folded = InferenceModel(encnet(dtype, settings))
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    label = make_label_fn(folded.model_def, mean=ADE20K.mean, std=ADE20K.std)
    return Program(label, (*folded.shapes(), images))


def dilated_stages(
    impl: str, *, backbone: str, width: int, batch: int, pixels: int
) -> tuple[Program, Program]:
    """Stages 3 and 4 in training mode and bfloat16: forward, forward and gradients.

    Args:
        impl: `"lax"` or `"space_to_batch"`.
        backbone: See `ResNet`.
        width: See `ResNet`.
        batch: Images.
        pixels: Height and width of the features.
    """
    network = nnx.eval_shape(lambda: ResNet(backbone, width=width, rngs=nnx.Rngs(0)))
    set_layer_options(network, dtype=jnp.bfloat16)
    set_conv_impl(network, impl)
    parts: Any = nnx.split(network, nnx.Param, ...)
    graphdef, params, rest = parts

    def forward(params: nnx.State, rest: nnx.State, x: jax.Array) -> jax.Array:
        for stage in nnx.merge(graphdef, params, rest, copy=True).stages[2:]:
            for block in stage:
                x = block(x)
        return x

    size = (batch, pixels, pixels)
    x = jax.ShapeDtypeStruct((*size, network.features[1]), jnp.bfloat16)
    return _both_ways(forward, (params, rest, x), varied=(0, 2))


def encoding(*, batch: int, pixels: int, channels: int) -> tuple[Program, Program]:
    """The encoding layer of 32 codewords on bfloat16 features; as `dilated_stages`."""
    layer = nnx.eval_shape(lambda: Encoding(channels, 32, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(layer)

    def forward(params: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(x)

    x = jax.ShapeDtypeStruct((batch, pixels, pixels, channels), jnp.bfloat16)
    return _both_ways(forward, (params, x), varied=(0, 1))


def random_arrays(shapes: Any, seed: int = 0) -> Any:
    """Returns arrays for a tree of shapes, such that features keep their size.

    Kernels and codewords are normal with a variance of 2 by the fan-in; scales and
    variances 1, other vectors 0; integers what is fit for images and labels.
    """
    rng = np.random.default_rng(seed)

    def array(path: Any, leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.asarray(rng.integers(0, CLASSES, leaf.shape), leaf.dtype)
        if leaf.ndim > 1:
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            values = rng.standard_normal(leaf.shape, np.float32) * deviation
        else:
            ones = any(name in jax.tree_util.keystr(path) for name in ("scale", "var"))
            values = np.full(leaf.shape, ones, np.float32)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(array, shapes)


def encnet(dtype: DTypeLike, settings: dict[str, Any]) -> nnx.Module:
    return nnx.eval_shape(
        lambda: create_model(
            "encnet", num_classes=CLASSES, dtype=jnp.dtype(dtype), **settings
        )
    )


def _both_ways(
    forward: Callable[..., jax.Array],
    arguments: tuple[Any, ...],
    varied: tuple[int, ...],
) -> tuple[Program, Program]:
    """Returns a function, and the same with its gradients by some arguments."""
    cotangent = jax.eval_shape(forward, *arguments)

    def backward(cotangent: jax.Array, *arguments: Any) -> Any:
        def partly(*some: Any) -> jax.Array:
            every = list(arguments)
            for position, value in zip(varied, some):
                every[position] = value
            return forward(*every)

        result, pull = jax.vjp(partly, *(arguments[i] for i in varied))
        return result, pull(cotangent)

    gradients = Program(jax.jit(backward), (cotangent, *arguments))
    return Program(jax.jit(forward), arguments), gradients
