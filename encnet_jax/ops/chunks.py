"""A batch in chunks of images, so that what is made of a chunk stays in the cache.

A convolution by GEMMs makes four to nine times as many elements as the images have.
For a whole batch they go to memory and back, which takes as long as the GEMMs
themselves; that matters where channels are few.
"""

import jax
from jaxtyping import Array, Shaped

from encnet_jax.ops.resize import AnyArray

# Number of elements in the images of a chunk. The fewer, the more of them stay in the
# cache; but the compiler gives small products to one core unless independent ones are
# next to them, as in the backward pass.
FORWARD_CHUNK_ELEMENTS = 2**20
BACKWARD_CHUNK_ELEMENTS = 2**17


def chunk_size(
    x: Shaped[Array, "b h w in"] | jax.ShapeDtypeStruct,
    kernel: Shaped[AnyArray, "3 3 in out"] | jax.ShapeDtypeStruct,
    max_elements: int,
) -> int:
    """Returns how many of the images pass together; a divisor of the batch.

    As many as have `max_elements`, but enough for four times as many pixels as
    channels: the GEMMs of every chunk read the whole kernel.
    """
    b, h, w, _ = x.shape
    channels = max(kernel.shape[2:])
    most = max(max_elements, 4 * channels**2) // (h * w * channels)
    return max(n for n in range(1, max(min(b, most), 1) + 1) if b % n == 0)


def split_chunks(
    x: Shaped[Array, "b h w c"], size: int
) -> Shaped[Array, "chunks size h w c"]:
    """Returns the images in chunks of `size`."""
    return x.reshape(-1, size, *x.shape[1:])
