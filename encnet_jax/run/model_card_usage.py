"""How a model folder is used: the code and the command in its model card."""

from encnet_jax.data.dataset_info import DatasetInfo

_SEGMENT = """\
from encnet_jax import Segmenter

segmenter = Segmenter.from_pretrained("{source}"){note}
result = segmenter("{file}")  # {forms}
result.labels  # class indices (h, w); names: result.class_names
result.overlay().save("overlay.png")
"""
_CLASSIFY = """\
from encnet_jax import Classifier

classifier = Classifier.from_pretrained("{source}"){note}
result = classifier("{file}")  # {forms}
result.label  # class index; names: result.class_names
result.probabilities  # float32 (n,)
"""


def usage_section(info: DatasetInfo, address: str) -> list[str]:
    """Returns the lines of Markdown that predict with a model folder.

    Args:
        info: Task and channels.
        address: OWNER/REPO, or OWNER/REPO@REVISION, if the folder is to be uploaded
            there.
    """
    file, files, extras = "photo.jpg", "PHOTO.jpg", ""
    forms = "or a PIL image, or uint8 (h, w, 3)"
    if info.banded:
        count = info.channels
        file, files, extras = "image.tif", "IMAGE.tif", "TIFF files its extra `tiff`, "
        forms = f"of {count} channels, or an array (h, w, {count}) of values as stored"
    code = _CLASSIFY if info.task == "classification" else _SEGMENT
    return [
        "```python",
        code.format(
            source=f"hf://{address}" if "@" in address else address or ".",
            note="" if address else "  # this folder",
            file=file,
            forms=forms,
        )
        + "```",
        "",
        "Or, for files and folders:",
        "",
        "    encnet predict "
        f"--workdir={f'hf://{address}' if address else '.'} "
        f"--output=predictions {files}",
        "",
        f"Requires the package `encnet-jax`; {extras}a download from the hub its extra "
        "`weights`.",
        "",
    ]
