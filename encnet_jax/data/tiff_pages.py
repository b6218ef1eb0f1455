"""TIFF files of several pages, of which Pillow reads the first."""

import contextlib
import io

from PIL import Image

from encnet_jax.errors import UserError

_PAGE_KIND = 254  # TIFF tag
COPY_OR_MASK = 0b101  # its bits: 0, a smaller copy of another page; 2, a mask


def is_gray(image: Image.Image) -> bool:
    """Returns whether an opened image has one channel of more than one bit."""
    return image.mode in ("L", "F") or image.mode.startswith("I")


def check_one_page(image: Image.Image, data: bytes, name: str, remedy: str) -> None:
    """Raises `UserError` for a TIFF with more pages like the first one.

    Such pages are channels, classes, or slices, and the first of them is not the whole
    image. Smaller copies of an image (pyramids) and masks do not count, nor do pages of
    another size, or gray pages beside others.

    Args:
        image: The opened file, at its first page.
        data: Content of the file.
        name: Name of the file, for the message.
        remedy: End of the message.
    """
    if image.format != "TIFF":
        return
    gray, count = is_gray(image), 1
    # Opened again, as reading stays at the page that was sought last. Where one is
    # damaged, which raises errors of many kinds, those before it count.
    with contextlib.suppress(Exception):
        pages = Image.open(io.BytesIO(data), formats=["TIFF"])
        for index in range(1, getattr(pages, "n_frames", 1)):
            pages.seek(index)
            kind = dict(getattr(pages, "tag_v2", {})).get(_PAGE_KIND, 0)
            alike = is_gray(pages) if gray else pages.mode == image.mode
            count += alike and pages.size == image.size and not kind & COPY_OR_MASK
    if count > 1:
        raise UserError(
            f"{name}: a TIFF of {count} {'gray ' * gray}pages of {image.width}x"
            f"{image.height} pixels; must be one page{remedy}"
        )
