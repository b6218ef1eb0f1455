"""Checks of an image against its label file: size and EXIF orientation."""

import logging
import threading

from encnet_jax.data.image_io import open_image, orientation
from encnet_jax.errors import UserError

_MAX_WARNINGS = 10  # per data set: phones turn all their images
_log = logging.getLogger(__name__)


def check_sizes(
    image: tuple[int, ...],
    image_name: str,
    labels: tuple[int, ...],
    label_name: str,
    note: str = "",
) -> None:
    """Raises `UserError` if the shapes of an image and its labels differ in size."""
    if image[:2] != labels:
        raise UserError(
            f"{image_name} is {image[1]}x{image[0]} pixels and {label_name} is "
            f"{labels[1]}x{labels[0]}: must be equal{note}"
        )


class OrientationCheck:
    """Finds images that their EXIF orientation turns without their labels.

    Both are turned upright by their own tags. Tools that write label files often drop
    the tag, whether the labels were drawn on the image as shown or as stored.
    """

    def __init__(self) -> None:
        self._checked: set[str] = set()
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def __call__(
        self,
        image: bytes,
        image_name: str,
        labels: bytes,
        label_name: str,
        *,
        size: tuple[int, ...],
        label_size: tuple[int, ...],
    ) -> None:
        """Compares a pair of files.

        Args:
            image: Content of the image file.
            image_name: Its name.
            labels: Content of the label file.
            label_name: Its name.
            size: Height and width of the upright image.
            label_size: The same of the labels.

        Raises:
            UserError: The sizes differ.
        """
        with self._lock:
            if image_name in self._checked and size == label_size:
                return
            self._checked.add(image_name)
        turned = orientation(open_image(image, image_name), image_name)
        label_turned = orientation(open_image(labels, label_name), label_name)
        self.compare(
            *(turned, image_name, label_turned, label_name),
            size=size,
            label_size=label_size,
        )

    def compare(
        self,
        turned: int,
        image_name: str,
        label_turned: int,
        label_name: str,
        *,
        size: tuple[int, ...],
        label_size: tuple[int, ...],
    ) -> None:
        """Compares a pair whose EXIF orientations, 1 to 8, are known."""
        note = ""
        if turned != label_turned:
            note = (
                f"; EXIF orientation: {turned} of the image, {label_turned} of the "
                "labels (1: upright), and each was turned by its own"
            )
        check_sizes(size, image_name, label_size, label_name, note)
        # Otherwise labels of the image as it is stored would not fit.
        ambiguous = turned in (2, 3, 4) or size[0] == size[1]
        if turned != 1 and label_turned == 1 and ambiguous:
            self._warn(image_name, label_name, turned)

    def _warn(self, image_name: str, label_name: str, turned: int) -> None:
        with self._lock:  # while it writes, too: the last warning comes last
            if image_name in self._warned or len(self._warned) == _MAX_WARNINGS:
                return
            self._warned.add(image_name)
            last = len(self._warned) == _MAX_WARNINGS
            _log.warning(
                "%s: turned by its EXIF orientation %d, and %s is not: check that they "
                "still cover each other%s",
                image_name,
                turned,
                label_name,
                "; further images are not listed" if last else "",
            )
