"""JPEG 2000 files of any number of bits, which Pillow does not write."""

import io

import numpy as np
from PIL import Image

_SIZ = b"\xff\x4f\xff\x51"
_SIGNED = 0x80


def make_jpeg2000(values, bits, *, signed=False, codestream=False):
    """Returns a lossless file of (h, w), or (h, w, c) of at most 8 bits.

    A decoder adds half of the range of unsigned values, which the encoder has taken
    away. So a file of 8 or 16 bits, the values moved to its middle, is one of fewer
    bits once its header says so.
    """
    values = np.asarray(values)
    container = 8 if values.ndim == 3 or bits <= 8 else 16
    middle = 0 if signed else 1 << bits - 1
    moved = values.astype(int) + (1 << container - 1) - middle
    assert 0 <= moved.min() <= moved.max() < 1 << container
    image = Image.fromarray(moved.astype(f"uint{container}"))
    file = io.BytesIO()
    settings = dict(no_jp2=codestream, irreversible=False, mct=0)
    image.save(file, "JPEG2000", **settings)
    data = bytearray(file.getvalue())
    start = data.index(_SIZ) + 40
    for component in range(data[start + 1]):
        data[start + 2 + 3 * component] = bits - 1 | _SIGNED * signed
    if not codestream:
        data[data.index(b"ihdr") + 14] = bits - 1 | _SIGNED * signed
    return bytes(data)
