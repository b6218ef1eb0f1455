"""Model cards: the README of a model folder, and what that of an export shares.

The front matter is the YAML metadata of the Hugging Face hub.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from encnet_jax.data.bands import model_input
from encnet_jax.data.dataset_info import DatasetInfo
from encnet_jax.data.label_map import published_labels
from encnet_jax.data.registry import DATASETS
from encnet_jax.errors import UserError
from encnet_jax.run.model_card_usage import usage_section
from encnet_jax.run.training_record import METRICS

CITATION = """\
@inproceedings{zhang2018context,
  title     = {Context Encoding for Semantic Segmentation},
  author    = {Zhang, Hang and Dana, Kristin and Shi, Jianping and Zhang, Zhongyue and
               Wang, Xiaogang and Tyagi, Ambrish and Agrawal, Amit},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2018}
}
"""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HALF_PAIR = re.compile(r"[\ud800-\udfff]")  # UTF-8 has no code for it
# An underscore within a word is no markup, and an ampersand only before an entity.
_MARKUP = re.compile(r"[\\`*~$<\[|]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
_NOT_IN_YAML = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# Last line of a card. Whatever is edited above it no longer has its digest.
_DIGEST = (
    "<!-- Written by encnet_jax, {}; a card that was edited is not replaced. -->\n"
)


def folder_card(
    config: Mapping[str, Any], info: DatasetInfo, license_id: str, address: str
) -> str:
    """Returns the README of a model folder, in Markdown.

    Args:
        config: Contents of its `config.json`.
        info: Classes and normalization.
        license_id: License of the weights, an identifier of the hub.
        address: OWNER/REPO if the folder is to be uploaded there.
    """
    training = config.get("training", {})
    text = "\n".join(
        [
            *front_matter(config["model"]["name"], info, training, license_id),
            f"# {markdown_text(model_title(config['model'], info, training))}",
            "",
            *usage_section(info, address),
            *(line for note in image_notes(info, 0) for line in (note, "")),
            *_sizes(config["prediction"]),
            *_training(training),
            *_scores(training),
            *dataset_section(info),
            *class_table(info),
            "",
            "`config.json` holds the same in machine-readable form.",
            "",
            *citation_section(),
            "",
        ]
    )
    return text + _DIGEST.format(_digest(text))


def is_card(data: bytes) -> bool:
    """Returns whether a file is a card as `folder_card` wrote it."""
    text = data.decode(errors="replace").replace("\r\n", "\n")
    above, _, last = text.removesuffix("\n").rpartition("\n")
    return f"{last}\n" == _DIGEST.format(_digest(f"{above}\n"))


def check_license(license_id: str) -> None:
    """Raises `UserError` unless a text has the form of the hub's license names."""
    if not (isinstance(license_id, str) and _LICENSE.fullmatch(license_id)):
        raise UserError(
            f"license={license_id!r}: must be an identifier of the hub, such as "
            "apache-2.0, mit, cc-by-4.0, other, unknown"
        )


def model_title(
    network: Mapping[str, Any],
    info: DatasetInfo,
    training: Mapping[str, Any],
) -> str:
    """Returns one line that describes a model, as plain text.

    Args:
        network: Its `name`, and the `backbone` of one that segments.
        info: Its classes.
        training: See `training_record`.
    """
    backbone = "" if info.task == "classification" else f" ({network['backbone']})"
    title = f"{network['name']}{backbone}, {info.num_classes} classes"
    if not training:
        return title
    return f"{title}, step {training['step']} of {_line(training['run'])}"


def front_matter(
    network: str,
    info: DatasetInfo,
    training: Mapping[str, Any],
    license_id: str = "unknown",
    tags: Sequence[str] = (),
) -> list[str]:
    """Returns the hub's metadata, lines of YAML between lines of dashes.

    Args:
        network: A key of `encnet_jax.models.registry.MODELS`.
        info: The classes.
        training: See `training_record`; its scores are the results of the model.
        license_id: License of the weights.
        tags: More tags.
    """
    classifies = info.task == "classification"
    task = "image-classification" if classifies else "image-segmentation"
    kind = task if classifies else "semantic-segmentation"
    scores = training.get("scores", [])
    metrics = [key for key in METRICS if any(key in score for score in scores)]
    data: dict[str, Any] = {
        "license": license_id,
        "library_name": "encnet_jax",
        "pipeline_tag": task,
        "tags": [kind, network, "jax", *tags],
    }
    if _published(info):
        data["datasets"] = [info.name]
    if metrics:
        data["metrics"] = metrics
        results = [_result(task, score) for score in scores]
        data["model-index"] = [{"name": str(training["run"]), "results": results}]
    return ["---", *_yaml(data), "---", ""]


def image_notes(info: DatasetInfo, longest: int, shortest: int = 0) -> list[str]:
    """Returns how images become the input of the network.

    Args:
        info: Normalization and range of values.
        longest: Long side that the caller has to resize images to; 0: nothing to do.
        shortest: Short side that they must not exceed either; 0: no such bound.
    """
    notes = [model_input(info)] if info.banded else []
    if bounds := _bounds(longest, shortest):
        notes.append(
            f"Images are predicted with {bounds}: resize them to that first, and the "
            "labels back by nearest neighbor."
        )
    if info.value_range and not info.banded:
        low, high = cast(tuple[float, float], info.value_range)
        notes.append(
            f"Training images of more than 8 bits held values from {low:g} to "
            f"{high:g}. The model takes uint8: scale such images linearly to 0 to 255 "
            "first, round, and clip."
        )
    notes.append(
        "Images are normalized by the model, to (x / 255 - mean) / std with mean "
        f"{_triple(info.mean)} and std {_triple(info.std)}."
    )
    return notes


def _bounds(longest: int, shortest: int) -> str:
    """Returns sides in words; "" if both are 0."""
    sides = {"long": longest, "short": shortest}
    bounds = [f"a {name} side of {side} pixels" for name, side in sides.items() if side]
    both = ", or less to keep the other bound" if len(bounds) > 1 else ""
    return " and ".join(bounds) + both


def class_table(info: DatasetInfo) -> list[str]:
    """Returns a row per class; with the label in files where that is another number."""
    published = published_labels(info).tolist()
    differ = published != list(range(info.num_classes))
    files = " label in the data set's files |" if differ else ""
    rows = [f"| label | class | color |{files}"]
    rows.append("| ---: | --- | --- |" + (" ---: |" if differ else ""))
    for index, (name, color) in enumerate(zip(info.class_names, info.colors)):
        value = f" {published[index]} |" if differ else ""
        rows.append(
            f"| {index} | {markdown_text(name)} | {_hexadecimal(color)} |{value}"
        )
    return rows


def dataset_section(info: DatasetInfo) -> list[str]:
    """Returns source, terms and publication of a published data set."""
    known = _published(info)
    if known is None:
        return []
    return [
        f"Data set: [{info.name}]({known.homepage}). {known.citation} "
        f"License: {known.license}",
        "",
    ]


def citation_section() -> list[str]:
    """Returns the paper to cite."""
    return ["## Citation", "", "```bibtex", CITATION + "```"]


def _published(info: DatasetInfo) -> DatasetInfo | None:
    entry = DATASETS.get(info.name)
    known = entry.info if entry else None
    if known is None or not known.homepage or known.class_names != info.class_names:
        return None
    return known


def _sizes(prediction: Mapping[str, Any]) -> list[str]:
    """Returns to what images are resized before they are normalized."""
    parts = []
    if size := prediction.get("size"):
        parts.append(f"resized to {size}x{size} pixels")
    sides = prediction.get("base_size", 0), prediction.get("short_size", 0)
    scales = ", ".join(f"{scale:g}" for scale in prediction.get("scales", ()))
    if bounds := _bounds(*sides):
        parts.append(f"resized to {bounds}{scales and f' (times {scales})'}")
    elif scales:
        parts.append(f"resized by {scales}")
    if prediction.get("crop_size") and prediction["mode"] == "slide":
        parts.append(f"cut into windows of {prediction['crop_size']} pixels")
    text = f"Before that they are {' and '.join(parts)}." if parts else ""
    if prediction.get("flip"):
        text += " Their mirror images are predicted as well."
    return [text.strip(), ""] if text else []


def _training(training: Mapping[str, Any]) -> list[str]:
    """Returns how the weights were trained, if that is known."""
    if "total_steps" not in training:
        return []
    text = (
        f"Trained for {training['step']} of {training['total_steps']} steps of "
        f"{training['batch_size']} images of {training['crop_size']} pixels, learning "
        f"rate {training['learning_rate']:g}, {markdown_text(training['optimizer'])}"
    )
    start = training.get("initial_weights")
    return [
        text + (f", from {markdown_text(start)}." if start else ", from scratch."),
        "",
    ]


def _scores(training: Mapping[str, Any]) -> list[str]:
    scores = training.get("scores", [])
    if not scores:
        return []
    metrics = [key for key in METRICS if any(key in score for score in scores)]
    titles = " | ".join(METRICS[key] for key in metrics)
    rows = [f"| data set | split | evaluation | {titles} |"]
    rows.append("| --- | --- | --- |" + " ---: |" * len(metrics))
    for score in scores:
        values = (f"{100 * score[key]:.2f}" if key in score else "" for key in metrics)
        first = (
            markdown_text(score[key]) for key in ("dataset", "split", "evaluation")
        )
        rows.append(f"| {' | '.join(first)} | {' | '.join(values)} |")
    return [*rows, ""]


def _result(task: str, score: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an entry of the hub's `model-index`."""
    name = str(score["dataset"])
    data = {"type": re.sub(r"\W+", "-", name), "name": name, "split": score["split"]}
    metrics = [
        {"type": key, "name": f"{title} ({score['evaluation']})", "value": score[key]}
        for key, title in METRICS.items()
        if key in score
    ]
    return {"task": {"type": task}, "dataset": data, "metrics": metrics}


def _yaml(value: Any, indent: str = "") -> list[str]:
    """Returns nested dicts and lists as YAML; scalars are written as in JSON."""
    lines = []
    pairs = value.items() if isinstance(value, dict) else ((None, v) for v in value)
    for key, item in pairs:
        start = f"{indent}- " if key is None else f"{indent}{key}: "
        if isinstance(item, dict | list):
            inner = _yaml(item, f"{indent}  ")
            if key is None:  # the first line of the item follows the dash
                lines += [start + inner[0].lstrip(), *inner[1:]]
            else:
                lines += [start.rstrip(), *inner]
        else:
            lines.append(start + _scalar(item))
    return lines


def _scalar(value: Any) -> str:
    text = _HALF_PAIR.sub("\ufffd", json.dumps(value, ensure_ascii=False))
    # YAML has fewer printable characters than JSON, and the same escapes.
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def markdown_text(value: str) -> str:
    """Returns any text as one line of Markdown that shows it as it is."""
    return _MARKUP.sub(r"\\\g<0>", _line(value))


def _line(value: str) -> str:
    return _HALF_PAIR.sub("\ufffd", " ".join(_CONTROL.sub(" ", value).split()))


def _triple(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _hexadecimal(color: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in color)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
