"""The mean gate of the Context Encoding Module over images, kept with a checkpoint."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from encnet_jax.files import whole_file

_log = logging.getLogger(__name__)


class MeanGate(NamedTuple):
    """The mean gate over images.

    Attributes:
        gate: The factor of each of c channels, 0 to 1.
        images: The number of images.
    """

    gate: Float32[np.ndarray, " c"]
    images: int

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads; six decimals."""
        return {
            "images": self.images,
            "gate": [round(value, 6) for value in self.gate.tolist()],
        }

    @classmethod
    def from_json(cls, stored: Any) -> "MeanGate":
        """Reads what `json.loads` returned; raises `ValueError` for anything else."""
        if not isinstance(stored, dict) or stored.keys() != {"images", "gate"}:
            raise ValueError("must have images and gate")
        images, gate = stored["images"], stored["gate"]
        if type(images) is not int or images < 1:
            raise ValueError(f"images={images!r}: must be a number of images")
        valid = isinstance(gate, list) and all(
            type(value) in (int, float) and 0 <= value <= 1  # not NaN
            for value in gate
        )
        if not (valid and gate):
            raise ValueError("gate: must be numbers from 0 to 1")
        return cls(np.asarray(gate, np.float32), images)


def write_mean_gate(checkpoint: Path, mean_gate: MeanGate) -> None:
    """Stores the mean gate of a finished checkpoint, beside its scores."""
    path = _path(checkpoint)
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as file:
        file.write(json.dumps(mean_gate.to_json()).encode())


def read_mean_gate(checkpoint: Path) -> MeanGate | None:
    """Returns the mean gate of a checkpoint; None if none is stored, or readable."""
    path = _path(checkpoint)
    try:
        return MeanGate.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("WARNING: %s: not used as the mean gate: %s", path, error)
        return None


def _path(checkpoint: Path) -> Path:
    return checkpoint / "metrics" / "mean_gate.json"
