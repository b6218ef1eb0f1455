"""A batch in blocks of images, so that what is made of a block stays in the cache.

A convolution as matrix products makes four to nine times as many numbers as the images
have. Of a whole batch they go to memory and come back, which takes as long as the
products; that matters where channels are few.
"""

import jax

# How many numbers the images of a block have. The fewer, the more of them stay in the
# cache. But the compiler gives small products to one core, unless others that do not
# depend on them stand beside them, as in the backward pass.
FORWARD_CHUNK_ELEMENTS = 2**20
BACKWARD_CHUNK_ELEMENTS = 2**17


def chunk_size(x: jax.Array, kernel: jax.Array, numbers: int) -> int:
    """Returns how many of the images (b, h, w, in) pass together; a divisor of b.

    As many as have so many numbers, but enough for four times as many pixels as
    channels: the products of every block read all of the kernel (3, 3, in, out).
    """
    b, h, w, _ = x.shape
    channels = max(kernel.shape[2:])
    most = max(numbers, 4 * channels**2) // (h * w * channels)
    return max(n for n in range(1, max(min(b, most), 1) + 1) if b % n == 0)


def split_chunks(x: jax.Array, size: int) -> jax.Array:
    """Returns (b, h, w, c) as (b / size, size, h, w, c)."""
    return x.reshape(-1, size, *x.shape[1:])
