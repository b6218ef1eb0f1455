"""Settings that other settings leave without effect.

Recipes may hold them, so that changing one key changes one thing. But a user who sets
such a key on the command line expects an effect, and is told that there is none.
"""

from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from encnet_jax.models.registry import has_setting, segments
from encnet_jax.run.folder_config import has_windows
from encnet_jax.run.model_config import TRAINING_ONLY

# Read whatever the network: arguments of `create_model` itself.
_OF_ANY_MODEL = (
    *("name", "conv_impl", "head_init", "unbiased_running_var", "dtype"),
    *TRAINING_ONLY,
)
# Of image classification; the images are neither scaled nor cut into windows.
_IGNORED_BY_CLASSIFIERS = (
    *("data.base_size", "data.scale_range", "loss.se_weight", "loss.aux_weight"),
    "loss.normalize_by",
)
_WINDOWS = (
    "windows (evaluation.mode=slide; without evaluation.protocol=mmseg also .scales)",
    lambda config: config.evaluation.mode == "slide" or _slides_by_scales(config),
)
_CODEWORDS = ("model.num_codes above 0", lambda config: config.model.num_codes > 0)
# Key -> when it is read, in words and as a test.
_READ_IF: dict[str, tuple[str, Callable[[ConfigDict], bool]]] = {
    "optimizer.nesterov": (
        "optimizer.name=sgd",
        lambda config: config.optimizer.name == "sgd",
    ),
    "optimizer.beta2": (
        "optimizer.name=adamw",
        lambda config: config.optimizer.name == "adamw",
    ),
    "optimizer.power": (
        "optimizer.schedule=poly",
        lambda config: config.optimizer.schedule == "poly",
    ),
    "loss.se_weight": (
        "a network with model.se_loss, such as encnet",
        lambda config: _has(config, "se_loss") and config.model.se_loss,
    ),
    "loss.aux_weight": (
        "model.aux_head",
        lambda config: _has(config, "aux_head") and config.model.aux_head,
    ),
    "evaluation.crop_size": _WINDOWS,
    "evaluation.stride": _WINDOWS,
    "evaluation.mode": (  # slide is what happens then
        "evaluation.protocol=mmseg, or no evaluation.scales, which take windows",
        lambda config: (
            config.evaluation.mode == "slide" or not _slides_by_scales(config)
        ),
    ),
    "evaluation.align_corners": (
        "whole images or evaluation.protocol=mmseg; these windows have "
        "model.align_corners",
        lambda config: not has_windows(config) or config.evaluation.protocol == "mmseg",
    ),
    "model.se_stages": ("model.se_loss", lambda config: config.model.se_loss),
    "model.code_reduction": _CODEWORDS,
    "model.scale_init": _CODEWORDS,
    "model.stem_width": (
        "model.stem=deep",
        lambda config: config.model.stem == "deep",
    ),
}


def unread_settings(config: ConfigDict, keys: Iterable[str]) -> list[str]:
    """Returns a line for each key that is not read, such as `loss.aux_weight`.

    Args:
        config: See `encnet_jax.config`; valid.
        keys: Keys that a user has set.
    """
    lines = []
    for key in keys:
        if reason := _reason(config, key):
            lines.append(f"{key}: has no effect here: {reason}")
    return lines


def _reason(config: ConfigDict, key: str) -> str:
    """Returns why a key is not read; "" if it is."""
    group, _, name = key.partition(".")
    model = config.model
    if group == "model":
        if name in _OF_ANY_MODEL or _has(config, name):
            return _need(config, key)
        backbone = f" on {model.backbone}" if segments(model.name) else ""
        return f"{model.name}{backbone} has no such setting"
    if not segments(model.name):
        windows = group == "evaluation" and name not in ("split", "batch_size")
        if key in _IGNORED_BY_CLASSIFIERS or windows:
            return "only for segmentation"
    return _need(config, key)


def _need(config: ConfigDict, key: str) -> str:
    """Returns what a key needs from other settings to be read; "" if it has that."""
    needs, is_read = _READ_IF.get(key, ("", lambda config: True))
    return "" if is_read(config) else f"needs {needs}"


def _slides_by_scales(config: ConfigDict) -> bool:
    settings = config.evaluation
    return settings.protocol != "mmseg" and bool(settings.scales)


def _has(config: ConfigDict, key: str) -> bool:
    return has_setting(config.model.name, config.model.backbone, key)
