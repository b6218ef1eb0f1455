"""What the web page shows of an image, computed once; no page needed."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from encnet_jax.data.bands import RGB_INFO
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.image_io import image_size
from encnet_jax.data.tiff_file import bands_size
from encnet_jax.errors import UserError
from encnet_jax.explain.explainer import Explainer
from encnet_jax.explain.figure import most_used, relative_map
from encnet_jax.predict.predictor import Segmenter
from encnet_jax.visualize.overlay import label_image, overlay

MAX_BYTES = 32 << 20
_MAX_PIXELS = 25_000_000
_MAX_SCORES = 2 << 30  # of float32; windows keep one of each class at each pixel
_SHOWN_SIDE = 1280  # upper bound on the long side of what the page shows
_SHOWN_CODEWORDS = 6


class Analysis(NamedTuple):
    """What the network finds in an image.

    Attributes:
        image: The image, reduced for the page.
        labels: Its labels, likewise.
        label_png: The labels at the size of the image, as `predict` writes them.
        presence: For each class the probability that it occurs; None if the network
            does not predict it.
        codewords: Maps of the codewords used most, each with a title; None for
            networks without codewords.
    """

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]
    label_png: bytes
    presence: dict[str, float] | None
    codewords: list[tuple[Image.Image, str]] | None


class Analyzer:
    """Analyzes images with one model.

    Args:
        segmenter: The model.

    Attributes:
        max_pixels: Largest image.
    """

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter
        self.max_pixels = _MAX_PIXELS
        if segmenter.protocol is not None:
            most = _MAX_SCORES // segmenter.info.num_classes
            self.max_pixels = min(_MAX_PIXELS, most)
        self.explainer: Explainer | None
        try:
            self.explainer = segmenter.explainer()
        except UserError:  # a network without the module
            self.explainer = None

    @property
    def limits(self) -> str:
        """How large images may be, in words."""
        pixels = f"{self.max_pixels / 1e6:.3g} million pixels"
        return f"{MAX_BYTES >> 20} MiB and {pixels}"

    def __call__(self, path: str | Path) -> Analysis:
        """Segments an image file.

        Raises:
            UserError: It is too large, or no image, or one of other channels.
        """
        path = Path(path)
        check_upload(path, self.max_pixels, self.segmenter.info)
        try:
            result = self.segmenter(path)
        except UserError as error:  # the folder of an upload says nothing
            raise UserError(str(error).replace(str(path), path.name)) from error
        info, png = self.segmenter.info, io.BytesIO()
        label_image(result.labels, info).save(png, "PNG")
        image = Image.fromarray(result.image)
        image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
        labels = Image.fromarray(result.labels).resize(image.size, 0)
        presence = None
        if result.presence is not None:
            presence = dict(zip(result.class_names, result.presence.tolist()))
        return Analysis(
            image=np.asarray(image),
            labels=np.asarray(labels),
            label_png=png.getvalue(),
            presence=presence,
            codewords=self._codewords(result.pixels, image.size),
        )

    def overlay(self, analysis: Analysis, opacity: float) -> Image.Image:
        """Returns the reduced image under its labels, with a legend."""
        info = self.segmenter.info
        settings = info.colors, info.class_names
        return overlay(analysis.image, analysis.labels, *settings, opacity=opacity)

    def _codewords(
        self, pixels: np.ndarray, size: tuple[int, int]
    ) -> list[tuple[Image.Image, str]] | None:
        if self.explainer is None:
            return None
        assignment = self.explainer.assignment(pixels)
        if assignment is None:
            return None
        maps = []
        for k, share in most_used(assignment, _SHOWN_CODEWORDS):
            image = Image.fromarray(relative_map(assignment[..., k]))
            image = image.resize(size, Image.Resampling.NEAREST)
            maps.append((image, f"{k}: {share:.0%}"))
        return maps


def check_upload(
    path: Path, max_pixels: int = _MAX_PIXELS, info: DatasetInfo = RGB_INFO
) -> None:
    """Raises `UserError` if a file is too large, in bytes or in pixels, or no image.

    Args:
        path: The file.
        max_pixels: How many it may have.
        info: What the model was trained on: an image of bands may have any channels.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(
            f"{path.name}: {size >> 20} MiB; allowed are {MAX_BYTES >> 20} MiB"
        )
    data, name = path.read_bytes(), path.name
    allowed = f"allowed are {max_pixels / 1e6:.3g} million"
    try:
        if info.banded:
            height, width = bands_size(data, info.channels, name)
        else:
            height, width = image_size(data, name)
    except UserError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            # Its own message is about a setting that other commands have.
            raise UserError(f"{name}: too many pixels; {allowed}") from error
        raise
    if height * width > max_pixels:
        raise UserError(f"{name}: {width} x {height} pixels; {allowed}")
