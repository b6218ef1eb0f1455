"""Which entry of a PyTorch state dict goes where in a model, and what does not fit."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from encnet_jax.convert.key_mapping import KeyMapping

HEAD_PREFIXES = ("head.classifier.", "head.context.se_head.", "aux_head.classifier.")
_LISTED = 6  # names in a message before "and N more"


class LoadPlan:
    """What goes where, from names and shapes; no array is touched.

    Args:
        model: The model to be filled.
        entries: Name in the source -> array.
        mapping: Of the entries.
        head: See `encnet_jax.convert.load.load_torch_weights`.

    Attributes:
        variables: Path -> parameter or statistic of the model.
        loaded: Name in the source -> path, where they fit.
        dropped: Name in the source -> why it is left out.
        fresh: Paths that are left as they are.
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
        self.fresh: list[str] = []
        self.missing_keys: list[str] = []
        self.mismatched_keys: list[str] = []
        self._mapping, self._head = mapping, head
        pooled = _pools_shortcuts(model)
        self._other_shortcut = pooled is not None and pooled != mapping.pooled_shortcut
        wanted = self._wanted()
        self.unexpected_keys: list[str] = []
        for name, array in entries.items():
            path = wanted.pop(name, None)
            if path is not None:
                self._place(name, array, path)
            elif (reason := self._reason(name)) is not None:
                self.dropped[name] = reason
            else:
                self.unexpected_keys.append(name)
        self.missing_keys += [f"{path} ({name})" for name, path in wanted.items()]

    def _wanted(self) -> dict[str, str]:
        """Returns name in the source -> path, for all that is to be filled."""
        plain_stem = "backbone.stem.1.conv.kernel" not in self.variables
        wanted = {}
        for path in self.variables:
            outside = not path.startswith("backbone.")
            if outside and (self._head == "skip" or not self._mapping.head):
                self.fresh.append(path)
                continue
            name = self._mapping.name(path, plain_stem=plain_stem)
            if name is None:
                self.missing_keys.append(path)
            else:
                wanted[name] = path
        return wanted

    def _place(self, name: str, array: Any, path: str) -> None:
        shape, target = tuple(array.shape), _torch_shape(path, self.variables[path])
        if not jnp.issubdtype(array.dtype, jnp.floating):
            self.mismatched_keys.append(f"{name} is of {array.dtype}, not of floats")
        elif shape == target:
            self.loaded[name] = path
        elif (
            self._head == "reinitialize"
            and path.startswith(HEAD_PREFIXES)
            and shape[1:] == target[1:]
            and len(shape) == len(target)
        ):
            self.dropped[name] = f"{shape[0]} classes there, {target[0]} here"
            self.fresh.append(path)
        else:
            self.mismatched_keys.append(f"{name} is {shape}, not {target}")

    def _reason(self, name: str) -> str | None:
        """Returns why an entry without a place may be left out; None: it may not."""
        if name.endswith(".num_batches_tracked"):
            return "batches counted in training, not needed"
        if name in (f"{self._mapping.prefix}fc.{leaf}" for leaf in ("weight", "bias")):
            return "classifier of the backbone's pretraining"
        if self._head == "skip" and not self._mapping.belongs_to_backbone(name):
            return 'not of the backbone (head="skip")'
        for part, what in (
            ("aux_head.", "auxiliary head, which the model has not"),
            ("head.context.se_head", "SE branch, which the model has not"),
        ):
            theirs = [v for k, v in self._mapping.head.items() if k.startswith(part)]
            absent = not any(path.startswith(part) for path in self.variables)
            # Without any head the model is a backbone, and the error says so.
            whole = any(path.startswith("head.") for path in self.variables)
            if absent and whole and name.rpartition(".")[0] in theirs:
                return what
        return None

    def faults(self) -> list[str]:
        """Returns what does not fit, in words."""
        found = []
        if self.unexpected_keys:
            found.append(
                f"{len(self.unexpected_keys)} entries match nothing: "
                f"{shortened(self.unexpected_keys)}"
            )
        if self.missing_keys:
            found.append(
                f"{len(self.missing_keys)} of the model's are missing: "
                f"{shortened(self.missing_keys)}"
            )
        if self.mismatched_keys:
            found.append(
                f"{len(self.mismatched_keys)} of a wrong shape: "
                f"{shortened(self.mismatched_keys)}"
            )
        if self._other_shortcut:
            theirs = self._mapping.pooled_shortcut
            found.append(f"avg_down={theirs} there, {not theirs} here")
        return found


def _variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns path -> parameter or statistic; those of a bare ResNet as `backbone`."""
    found = {
        ".".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Param | nnx.BatchStat)
    }
    if not any(path.startswith("backbone.") for path in found):
        found = {
            f"backbone.{p}" if p.startswith(("stem.", "stages.")) else p: v
            for p, v in found.items()
        }
    return dict(sorted(found.items()))


def _pools_shortcuts(model: nnx.Module) -> bool | None:
    """Tells whether a model is of the D variant, which no shape shows."""
    stages = getattr(getattr(model, "backbone", model), "stages", None)
    # The first block of stage 2 has stride 2 at every output stride.
    return None if stages is None else stages[1][0].shortcut.pool > 1


def _torch_shape(path: str, variable: nnx.Variable) -> tuple[int, ...]:
    shape = tuple(variable.shape)
    if not path.endswith(".kernel"):
        return shape
    return (shape[-1], shape[-2], *shape[:-2])


def shortened(names: list[str]) -> str:
    """Returns the first names, and how many more there are."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
