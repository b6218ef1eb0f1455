"""Scores as figures: IoU by class, the confusion matrix, examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.datasets import Example
from encnet_jax.files import whole_file
from encnet_jax.visualize.fonts import Label, file_label, matplotlib_font
from encnet_jax.visualize.overlay import class_label, palette_image

_MAX_ANNOTATED = 28  # classes up to which the cells of the matrix show their values


def save_class_bars(scores: dict[str, Any], info: DatasetInfo, path: Path) -> None:
    """Plots the IoU of every class, best first, and the mean.

    Args:
        scores: The result of `metrics.segmentation_metrics`.
        info: Class names and colors.
        path: PNG file to write.
    """
    iou = np.asarray(scores["per_class_iou"])
    order = np.argsort(np.nan_to_num(iou, nan=-1.0), kind="stable")
    figure = Figure((7, 1.2 + 0.19 * len(iou)), layout="constrained")
    axes = figure.add_subplot()
    positions = np.arange(len(iou))
    colors = [np.asarray(info.colors[k]) / 255 for k in order]
    axes.barh(
        positions,
        100 * np.nan_to_num(iou[order]),
        color=colors,
        edgecolor="0.4",
        lw=0.5,
    )
    for position, value in enumerate(iou[order]):
        text = "absent" if np.isnan(value) else f"{100 * value:.1f}"
        x = 100 * np.nan_to_num(value) + 0.7
        axes.text(x, position, text, va="center", fontsize=7)
    axes.axvline(100 * scores["mean_iou"], color="black", ls="--", lw=0.8)
    labels = [_class_label(info, k) for k in order]
    axes.set_yticks(positions, [label.text for label in labels], fontsize=8)
    _set_fonts(axes.get_yticklabels(), labels)
    axes.set_ylim(-0.7, len(iou) - 0.3)
    axes.set_xlim(0, 108)
    axes.set_xlabel("IoU, %")
    axes.set_title(
        f"mean IoU {100 * scores['mean_iou']:.2f} % (dashed), over "
        f"{scores['classes_scored']} of {info.num_classes} classes"
    )
    _save(figure, path)


def save_confusion(
    matrix: Integer[np.ndarray, "n n"], info: DatasetInfo, path: Path
) -> None:
    """Plots a confusion matrix, each row in percent of its true class.

    Args:
        matrix: Counts, rows true classes, columns predicted ones.
        info: Class names.
        path: PNG file to write.
    """
    count = len(matrix)
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(6.0, 1.5 + (0.36 if count <= _MAX_ANNOTATED else 0.15) * count)
    figure = Figure((side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    # Square root scale, so that small shares of wrong pixels show.
    image = axes.imshow(np.sqrt(share), cmap="magma_r", vmin=0, vmax=10)
    size = 8 if count <= _MAX_ANNOTATED else 7
    labels = [_class_label(info, k) for k in range(count)]
    names = [label.text for label in labels]
    axes.set_xticks(range(count), names, rotation=90, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    _set_fonts([*axes.get_xticklabels(), *axes.get_yticklabels()], labels * 2)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= _MAX_ANNOTATED:
        for i, j in zip(*np.nonzero(share >= 0.5)):
            color = "white" if share[i, j] > 35 else "black"
            text = f"{share[i, j]:.0f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
    else:
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="0.9", lw=0.3)
        axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, shrink=0.6)
    bar.set_ticks(
        [0, 1, 10**0.5, 5, 50**0.5, 10], labels=["0", "1", "10", "25", "50", "100"]
    )
    bar.set_label("% of the true class's pixels")
    _save(figure, path)


def save_examples(
    rows: Sequence[tuple[str, Example, np.ndarray]], info: DatasetInfo, path: Path
) -> None:
    """Plots images, labels, predictions and their errors, one row per example.

    Args:
        rows: Captions, examples and predictions, uint8 (h, w).
        info: Class colors.
        path: PNG file to write.
    """
    heights = [
        min(example.image.shape[0] / example.image.shape[1], 3)
        for _, example, _ in rows
    ]
    figure = Figure((13, 3.1 * sum(heights) + 0.4 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 4, squeeze=False, height_ratios=heights)
    for grid_row, (caption, example, predictions) in zip(grid, rows):
        wrong = (example.labels != predictions) & (example.labels != IGNORE_LABEL)
        faded = 255 - (255 - example.image.mean(-1, keepdims=True)) * 0.3
        errors = np.where(wrong[..., None], (200, 0, 0), faded).astype(np.uint8)
        title = file_label(caption, matplotlib_font())
        panels = {
            title.text: example.image,
            "label": palette_image(example.labels, info.colors).convert("RGB"),
            "prediction": palette_image(predictions, info.colors).convert("RGB"),
            f"wrong: {100 * wrong.mean():.1f} % of pixels": errors,
        }
        for cell, (text, image) in zip(grid_row, panels.items()):
            cell.imshow(image, interpolation="nearest")
            cell.set_title(text, fontsize=9)
            cell.set_axis_off()
        _set_fonts([grid_row[0].title], [title])
    _save(figure, path)


def _class_label(info: DatasetInfo, index: int) -> Label:
    return class_label(info.class_names, index, matplotlib_font())


def _set_fonts(texts: Sequence[Text], labels: Sequence[Label]) -> None:
    """Sets the font files of names that are not in the default font.

    It also has them drawn literally: two dollar signs would stand for a formula.
    """
    for text, label in zip(texts, labels):
        text.set_parse_math(False)
        if label.path not in (None, matplotlib_font()):
            size = text.get_fontsize()
            text.set_fontproperties(FontProperties(fname=label.path, size=size))


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
