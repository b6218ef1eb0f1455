"""PNG files chunk by chunk, of forms that Pillow does not write."""

import struct
import zlib

import numpy as np

GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def chunk(kind, data):
    """Returns one chunk with its length and checksum."""
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def make_png(values, depth, color_type=GRAY, *chunks):
    """Returns a file of samples (h, w) or (h, w, c) of `depth` bits, unfiltered."""
    values = np.asarray(values)
    height, width = values.shape[:2]
    samples = values.reshape(height, -1).astype(">u2")
    bits = np.unpackbits(samples.view(np.uint8), axis=1).reshape(height, -1, 16)
    rows = np.packbits(bits[:, :, 16 - depth :].reshape(height, -1), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(chunks)
    body += chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
