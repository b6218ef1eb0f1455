"""The training step: augment, normalize, forward, loss, gradients, update."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Integer, Num, PRNGKeyArray

from encnet_jax.data.augment_device import augmented_batch, resized_batch
from encnet_jax.data.augmentation import Augmentation
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.losses import classification_loss, segmentation_loss
from encnet_jax.ops.normalize import normalize
from encnet_jax.run.state import ModelDef, PureDict, TrainState, pure_batch_stats

Batch = dict[str, jax.Array]
Images = Num[Array, "b h w c"]  # 0-255 RGB, or 0-65535 of bands
Labels = Integer[Array, "b *hw"]  # of pixels, or of whole images
Metrics = dict[str, jax.Array]
StepFn = Callable[[TrainState, Batch, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    model_def: ModelDef,
    tx: optax.GradientTransformation,
    info: DatasetInfo,
    *,
    augmentation: Augmentation | None = None,
    loss_settings: Mapping[str, Any] = MappingProxyType({}),
    grad_accum_steps: int = 1,
    ema_decay: float = 0.0,
) -> StepFn:
    """Returns the jitted step: (state, resident, batch) -> (state, metrics).

    The state is donated. `resident` holds the arrays that stay on the device: always
    the uint32 `seed` of dropout and of the augmentation there, an argument so that runs
    with other seeds share the compiled program.

    Args:
        model_def: The model, split from its arrays.
        tx: The optimizer.
        info: Data set; its task selects the loss, its mean and deviation normalize.
        augmentation: See `augment`; not needed for batches of finished images.
        loss_settings: Keyword arguments of `segmentation_loss`; of these
            `classification_loss` takes `label_smoothing`.
        grad_accum_steps: Number of micro-batches. Their gradients are averaged; batch
            norm sees one micro-batch at a time.
        ema_decay: Decay of the moving averages, read only if the state keeps them; see
            `update_ema`.
    """

    def loss_fn(
        params: PureDict,
        batch_stats: PureDict,
        images: Images,
        labels: Labels,
        key: PRNGKeyArray,
    ) -> tuple[jax.Array, tuple[PureDict, Metrics]]:
        model: Any = model_def.merge(params, batch_stats)
        nnx.reseed(model, dropout=key)
        inputs = normalize(images, info.mean, info.std)
        if info.task == "classification":
            smoothing = loss_settings.get("label_smoothing", 0.0)
            loss, parts = classification_loss(
                model(inputs), labels, label_smoothing=smoothing
            )
        else:
            # The loss upsamples the logits itself, without holding them whole.
            output = model.forward_low_res(inputs)
            loss, parts = segmentation_loss(
                output, labels, num_classes=info.num_classes, **loss_settings
            )
        return loss, (pure_batch_stats(model), {"loss": loss, **parts})

    grad_fn = jax.grad(loss_fn, has_aux=True)
    if grad_accum_steps > 1:
        grad_fn = _accumulate(grad_fn, grad_accum_steps)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        state: TrainState, resident: Batch, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        images, labels = augment(resident, batch, augmentation)
        key = jax.random.fold_in(jax.random.key(resident["seed"]), state.step)
        grads, (batch_stats, metrics) = grad_fn(
            state.params, state.batch_stats, images, labels, key
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state, params, batch_stats, ema_decay)
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    return train_step


def update_ema(
    state: TrainState, params: PureDict, batch_stats: PureDict, decay: float
) -> PureDict:
    """Returns decay * average + (1 - decay) * new values; nothing if none are kept.

    In the first steps the decay is at most (1 + step) / (10 + step), so that the
    initial values are soon forgotten (as TensorFlow's `ExponentialMovingAverage`).

    Args:
        state: The state before the step.
        params: Parameters after the step.
        batch_stats: Running statistics after the step.
        decay: The decay in the long run.
    """
    if not state.ema:
        return state.ema
    decay_now = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    new = {"params": params, "batch_stats": batch_stats}
    return optax.incremental_update(new, state.ema, 1 - decay_now)


def augment(
    resident: Batch, batch: Batch, augmentation: Augmentation | None
) -> tuple[Images, Labels]:
    """Returns images and labels; a batch's keys show what the host left to do.

    Args:
        resident: With the whole data set, if a batch has only indices.
        batch: `index` and `epoch` of examples in `resident`; images still to be cropped
            and resized; or finished `images` and `labels`.
        augmentation: Required unless the images are finished.

    Raises:
        ValueError: It is missing.
    """
    if "index" not in batch and "images" in batch:
        return batch["images"], batch["labels"]
    if augmentation is None:
        raise ValueError(f"augmentation: needed for batches of {', '.join(batch)}")
    if "index" in batch:
        return augmented_batch(resident, batch, resident["seed"], augmentation)
    return resized_batch(batch, augmentation)


def _accumulate(grad_fn: Callable[..., Any], steps: int) -> Callable[..., Any]:
    """Returns `grad_fn` over micro-batches; the i-th has rows i, i + steps, ..."""

    def split(x: jax.Array) -> jax.Array:  # rows stay on their devices
        return x.reshape(-1, steps, *x.shape[1:]).swapaxes(0, 1)

    def accumulated(
        params: PureDict,
        batch_stats: PureDict,
        images: Images,
        labels: Labels,
        key: PRNGKeyArray,
    ) -> tuple[PureDict, tuple[PureDict, Metrics]]:
        def micro_step(carry: Any, micro_batch: Any) -> Any:
            batch_stats, total = carry
            images, labels, index = micro_batch
            grads, (batch_stats, metrics) = grad_fn(
                params, batch_stats, images, labels, jax.random.fold_in(key, index)
            )
            return (batch_stats, jax.tree.map(jnp.add, total, grads)), metrics

        start = (batch_stats, jax.tree.map(jnp.zeros_like, params))
        micro_batches = (split(images), split(labels), jnp.arange(steps))
        (batch_stats, total), metrics = jax.lax.scan(micro_step, start, micro_batches)
        grads = jax.tree.map(lambda g: g / steps, total)
        return grads, (batch_stats, jax.tree.map(lambda m: m.mean(0), metrics))

    return accumulated
