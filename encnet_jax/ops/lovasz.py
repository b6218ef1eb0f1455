"""Lovász-softmax of logits that are resized to the labels, one class at a time.

The Lovász extension of the Jaccard loss (Berman et al. 2018, section 3): the errors of
a class are sorted over all pixels, and each is weighted by what its pixel adds to the
Jaccard loss when it joins those of larger errors. At the size of the labels a few
numbers a pixel are held, never the n resized logits of each.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from encnet_jax.ops.cross_entropy import resized_logsumexp
from encnet_jax.ops.pixel_labels import check_pixels, has_class
from encnet_jax.ops.resize import resize_bilinear


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def resized_lovasz_softmax(
    logits: Float[Array, "b h w n"],
    labels: Integer[Array, "b H W"],
    align_corners: bool = True,
) -> Float[Array, ""]:
    """Returns the mean Lovász-softmax loss of the classes present, float32.

    All pixels of the batch count as one image. If no pixel has a class, the loss is 0.
    The gradient with respect to the logits is computed together with the loss, and
    takes the order of the errors as fixed.

    Args:
        logits: Resized bilinearly to the labels.
        labels: 0 to n - 1, or any other number for a pixel that is left out.
        align_corners: See `resize_bilinear`.

    Raises:
        ValueError: Shapes that do not fit each other.
    """
    return _forward(logits, labels, align_corners)[0]


def _forward(
    logits: jax.Array, labels: jax.Array, align_corners: bool
) -> tuple[jax.Array, jax.Array]:
    check_pixels(logits, labels)
    _, height, width = labels.shape
    resize = partial(_resized_class, size=(height, width), align_corners=align_corners)
    low_res = logits.astype(jnp.float32)
    norm = resized_logsumexp(low_res, labels, align_corners)
    low_res = jnp.moveaxis(low_res, -1, 0)
    classes = jnp.arange(len(low_res))
    known = has_class(labels, len(low_res))

    # With u the slope of the loss by a probability p, the slope by logit j is
    # p[j] (u[j] - sum of u p over all classes): the sum is known after the first scan.
    def present(low_res: jax.Array, own: jax.Array) -> tuple[jax.Array, ...]:
        resized, pull_back = jax.vjp(resize, low_res)
        probability = jnp.where(known, jnp.exp(resized - norm), 0)
        loss, slope = _binary_loss(probability, own)
        return loss, slope * probability, pull_back(slope * probability)[0]

    def absent(low_res: jax.Array, own: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.zeros(()), jnp.zeros(own.shape), jnp.zeros_like(low_res)

    def add(sums: tuple[jax.Array, ...], each: tuple[jax.Array, ...]) -> Any:
        total, count, weighted = sums
        low_res, index = each
        own = labels == index
        found = own.any()
        loss, more, gradient = jax.lax.cond(found, present, absent, low_res, own)
        return (total + loss, count + found, weighted + more), gradient

    start = (jnp.zeros(()), jnp.zeros(()), jnp.zeros(labels.shape))
    sums, gradient = jax.lax.scan(add, start, (low_res, classes))
    total, count, weighted = sums

    def common(low_res: jax.Array) -> jax.Array:
        resized, pull_back = jax.vjp(resize, low_res)
        return pull_back(jnp.where(known, jnp.exp(resized - norm) * weighted, 0))[0]

    count = jnp.maximum(count, 1)
    gradient = (gradient - jax.lax.map(common, low_res)) / count
    return total / count, jnp.moveaxis(gradient, 0, -1).astype(logits.dtype)


def _backward(
    align_corners: bool, gradient: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, None]:
    del align_corners  # `gradient` follows it already
    return (cotangent * gradient).astype(gradient.dtype), None


resized_lovasz_softmax.defvjp(_forward, _backward)


def _resized_class(
    logit: Float[Array, "b h w"], *, size: tuple[int, int], align_corners: bool
) -> Float[Array, "b H W"]:
    """Returns the logits of one class, resized."""
    return resize_bilinear(logit[..., None], size, align_corners=align_corners)[..., 0]


def _binary_loss(
    probability: Float[Array, "b H W"], own: Bool[Array, "b H W"]
) -> tuple[Float[Array, ""], Float[Array, "b H W"]]:
    """Returns the loss of one class, and its slope by the probability of each pixel.

    Args:
        probability: Probability of the class; 0 for pixels that are left out, which
            then come last in the order of errors and change nothing.
        own: Pixels of the class.
    """
    errors = jnp.where(own, 1 - probability, probability)
    weights = lovasz_gradient(errors.ravel(), own.ravel()).reshape(errors.shape)
    return (errors * weights).sum(), jnp.where(own, -weights, weights)


def lovasz_gradient(
    errors: Float[Array, " p"], own: Bool[Array, " p"]
) -> Float[Array, " p"]:
    """Returns what each error weighs in the Lovász extension of the Jaccard loss.

    With the pixels by descending error, weight k is the Jaccard loss of the first k
    pixels mispredicted, less that of the first k - 1 (algorithm 1 of the paper). Of
    equal errors those of the class come first.

    Args:
        errors: 0 to 1.
        own: Pixels of the class; at least one.
    """
    # The bits of floats from 0 to below 2 ascend with them and leave one bit to spare:
    # integer keys that carry `own` are sorted faster than floats that do not.
    bits = jax.lax.bitcast_convert_type(jnp.clip(errors, 0, 1), jnp.uint32)
    keys = ~((bits << 1) | own.astype(jnp.uint32))
    order = jax.lax.iota(jnp.int32, len(keys))
    keys, order = jax.lax.sort((keys, order), num_keys=1, is_stable=False)
    first = 1 - (keys & 1).astype(jnp.int32)  # inverted with the key
    missed = jnp.cumsum(first)  # of the class, up to here
    wrong = jnp.arange(1, len(keys) + 1) - missed  # of other classes, up to here
    count = missed[-1]
    # Differences of the loss in closed form: those of float32 near 1 would cancel.
    union = (count + wrong).astype(jnp.float32)
    left = (count - missed).astype(jnp.float32)
    weights = jnp.where(first, 1 / union, left / union / (union - 1))
    return jnp.zeros_like(errors).at[order].set(weights, unique_indices=True)
