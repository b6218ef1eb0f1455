"""Matches the entries of a PyTorch state dict to the parameters of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from encnet_jax.convert.first_conv import FIRST_KERNELS
from encnet_jax.convert.key_mapping import KeyMapping
from encnet_jax.errors import shortened

HEAD_PREFIXES = ("head.classifier.", "head.context.se_head.", "aux_head.classifier.")


class LoadPlan:
    """Assignment of entries to parameters, by names and shapes; no array is read.

    Args:
        model: The model to be filled.
        entries: Key -> array.
        mapping: Key mapping of the entries.
        head: See `encnet_jax.convert.load.load_torch_weights`.

    Attributes:
        variables: Path -> parameter or statistic of the model.
        loaded: Key -> path of the entries that fit.
        dropped: Key -> reason why the entry is left out.
        left_initialized: Paths that keep their initial values.
        unexpected_keys: Keys that the model has no place for.
        missing_keys: Paths without an entry, with their keys.
        mismatched_keys: Keys of another shape or dtype, in words.
    """

    def __init__(
        self,
        model: nnx.Module,
        entries: Mapping[str, Any],
        mapping: KeyMapping,
        head: str,
    ):
        self.variables = _variables(model)
        self.loaded: dict[str, str] = {}
        self.dropped: dict[str, str] = {}
        self.left_initialized: list[str] = []
        self.unexpected_keys: list[str] = []
        self.missing_keys: list[str] = []
        self.mismatched_keys: list[str] = []
        self._mapping, self._head = mapping, head
        avg_down = _avg_down(model)
        self._other_shortcut = avg_down is not None and avg_down != mapping.avg_down
        expected = self._expected()
        for key, array in entries.items():
            path = expected.pop(key, None)
            if path is not None:
                self._match(key, array, path)
            elif (reason := self._drop_reason(key)) is not None:
                self.dropped[key] = reason
            else:
                self.unexpected_keys.append(key)
        self.missing_keys += [f"{path} ({key})" for key, path in expected.items()]

    def _expected(self) -> dict[str, str]:
        """Returns key -> path of all parameters to be loaded."""
        plain_stem = "backbone.stem.1.conv.kernel" not in self.variables
        expected = {}
        for path in self.variables:
            in_head = not path.startswith("backbone.")
            if in_head and (self._head == "skip" or not self._mapping.head):
                self.left_initialized.append(path)
                continue
            key = self._mapping.key(path, plain_stem=plain_stem)
            if key is None:
                self.missing_keys.append(path)
            else:
                expected[key] = path
        return expected

    def _match(self, key: str, array: Any, path: str) -> None:
        shape, target = tuple(array.shape), _torch_shape(path, self.variables[path])
        if not jnp.issubdtype(array.dtype, jnp.floating):
            self.mismatched_keys.append(f"{key} is {array.dtype}, not floating-point")
        elif shape == target:
            self.loaded[key] = path
        elif path in FIRST_KERNELS and shape == (target[0], 3, *target[2:]):
            self.loaded[key] = path  # to be extended, see `first_conv`
        elif (
            self._head == "reinitialize"
            and path.startswith(HEAD_PREFIXES)
            and shape[1:] == target[1:]
            and len(shape) == len(target)
        ):
            self.dropped[key] = f"{shape[0]} classes instead of {target[0]}"
            self.left_initialized.append(path)
        else:
            self.mismatched_keys.append(f"{key} is {shape}, not {target}")

    def _drop_reason(self, key: str) -> str | None:
        """Returns why an entry without a parameter may be dropped, or None."""
        if key.endswith(".num_batches_tracked"):
            return "batch counter, not needed"
        if key in (f"{self._mapping.prefix}fc.{leaf}" for leaf in ("weight", "bias")):
            return "classifier of the backbone's pretraining"
        if self._mapping.dinov2 and key.endswith("mask_token"):
            return "token of masked patches, for pretraining only"
        if self._head == "skip" and not self._mapping.in_backbone(key):
            return 'not part of the backbone (head="skip")'
        for part, reason in (
            ("aux_head.", "the model has no auxiliary head"),
            ("head.context.se_head", "the model has no SE branch"),
        ):
            layers = [v for k, v in self._mapping.head.items() if k.startswith(part)]
            absent = not any(path.startswith(part) for path in self.variables)
            # A model without any head is a backbone, for which heads are unexpected.
            has_head = any(path.startswith("head.") for path in self.variables)
            if absent and has_head and key.rpartition(".")[0] in layers:
                return reason
        return None

    def errors(self, not_finite: Sequence[str] = ()) -> list[str]:
        """Returns everything that does not fit, in words.

        Args:
            not_finite: Keys whose arrays hold NaN or infinite values.
        """
        found = [
            f"{len(keys)} {kind}: {shortened(list(keys))}"
            for kind, keys in (
                ("unexpected keys", self.unexpected_keys),
                ("missing keys", self.missing_keys),
                ("mismatched keys", self.mismatched_keys),
                ("tensors with NaN or infinity", not_finite),
            )
            if keys
        ]
        if self._other_shortcut:
            avg_down = self._mapping.avg_down
            found.append(
                f"avg_down={avg_down} in the weights, {not avg_down} in the model"
            )
        return found


def _variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns path -> parameter or statistic; a bare backbone counts as `backbone`."""
    found = {
        ".".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Param | nnx.BatchStat)
    }
    bare: tuple[str, ...] = ("stem.", "stages.")
    if "cls_token" in found:
        bare = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    if not any(path.startswith("backbone.") for path in found):
        found = {
            f"backbone.{path}" if path.startswith(bare) else path: node
            for path, node in found.items()
        }
    return dict(sorted(found.items()))


def _avg_down(model: nnx.Module) -> bool | None:
    """Returns whether a model is a ResNet-D, which no shape reveals."""
    stages = getattr(getattr(model, "backbone", model), "stages", None)
    # The first block of stage 2 has stride 2 at every output stride.
    return None if stages is None else stages[1][0].shortcut.pool > 1


def _torch_shape(path: str, variable: nnx.Variable) -> tuple[int, ...]:
    shape = tuple(variable.shape)
    if not path.endswith(".kernel"):
        return shape
    return (shape[-1], shape[-2], *shape[:-2])
