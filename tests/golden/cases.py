"""The stored cases: what is kept of each, and how close a result must come."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from .recipe import draw, draw_weights

DATA = Path(__file__).parent / "data"

# Parts of large arrays that are kept; the rest would test nothing more. Logits at input
# size are the small ones, kept whole, resized: a class or two tests the resizing.
CUTS: dict[str, dict[str, tuple[slice, ...]]] = {
    "backbone_resnet50_dilated": {
        "c1": np.s_[:, ::8],
        "c2": np.s_[:, ::8],
        "c3": np.s_[:, ::16],
        "c4": np.s_[:, ::16],
    },
    "encnet_resnet50s_ade20k": {
        "main_classes_0_to_7": np.s_[:, :2],
        "aux_classes_0_to_3": np.s_[:, :1],
    },
    "encnet_resnet50s_pcontext": {
        "main": np.s_[:, :2],
        "aux_classes_0_to_7": np.s_[:, :1],
    },
    "mmseg_encnet_r50_d8": {"main": np.s_[:, :2], "aux": np.s_[:, :1]},
    "multi_eval": {
        name: np.s_[..., ::3, ::3]
        for name in (
            "scores_noflip_a",
            "scores_noflip_b",
            *(f"scores_{i}_scale_{s}_only" for i in "ab" for s in ("0.5", "1", "1.75")),
        )
    },
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One case of the reference numbers.

    Attributes:
        name: Of the case and its files.
        facts: What the JSON file states; see `make_data.py`.
        arrays: The stored results of the original, in its own layout.
    """

    name: str
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def weights(self, variant: str = "") -> dict[str, np.ndarray]:
        """Returns the weights that the original was given, by its names."""
        facts = self.facts["variants"][variant] if variant else self.facts
        return draw_weights(facts, self.facts["seed"])

    def input(self, name: str) -> np.ndarray:
        """Returns an input that the original was given."""
        how = self.facts["inputs"][name]
        shape = tuple(how["shape"])
        return draw(how["key"], shape, self.facts["seed"], rule=how["rule"])

    def allowed(self, name: str) -> float:
        """Returns the largest error that still is float32 rounding.

        20 times what the original itself loses in float32 on a CPU: another order of
        summation gives another error of that size, a wrong convention one that is
        hundreds of times larger. Not below 1e-5 of the largest value, as one run may
        be lucky.
        """
        largest, float32_error = self.facts["arrays"][name]
        return max(20 * (float32_error or 0.0), 1e-5 * largest)

    def kept(self, name: str, value: np.ndarray) -> np.ndarray:
        """Returns the part of an array that is stored."""
        return value[CUTS.get(self.name, {}).get(name, ...)]


@functools.cache
def load_case(name: str) -> Case:
    """Returns a case by its name."""
    facts = json.loads((DATA / f"{name}.json").read_text())
    with np.load(DATA / f"{name}.npz") as file:
        return Case(name, facts, dict(file))


def nchw(x: Any) -> np.ndarray:
    """Returns feature maps (b, h, w, c) in the layout of the originals."""
    return np.moveaxis(np.asarray(x), -1, 1)


def nhwc(x: np.ndarray) -> np.ndarray:
    """Returns feature maps of the originals as (b, h, w, c)."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))
