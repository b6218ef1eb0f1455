"""Cuts the small copies of the reference numbers that the tests need.

    python -m tests.golden.make_data GOLDEN_FOLDER

GOLDEN_FOLDER holds NAME.npz and NAME.json of each case, and the README that says how
they were made. Weights and most inputs are drawn again by the recipe, so they
are not copied.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .cases import CUTS, DATA

# Arrays that the recipe gives, that others contain, or that test nothing of ours.
_LEFT_OUT = (
    "image",
    "eval_image",
    "image_a",
    "image_b",
    "x",
    "cotangent",
    "cotangent_feature",
    "cotangent_se",
    "near_codewords",
    "near_scale",
    "far_codewords",
    "far_scale",
    "step_iteration",
    "step_lr_backbone_head_aux",
    *(
        f"{variant}_{name}"
        for variant in ("plain", "spread")
        for name in ("codewords", "scale")
    ),
    *(f"batch{i}_logits" for i in range(3)),
)
# As in the case `losses`, which the test of the other one reads as well.
_SHARED = ("main_logits", "se_logits", "aux_logits", "se_target", "target")


def main(golden: Path) -> None:
    """Writes NAME.npz and NAME.json of each case under `DATA`."""
    DATA.mkdir(exist_ok=True)
    for path in sorted(golden.glob("*.npz")):
        facts = json.loads(path.with_suffix(".json").read_text())
        with np.load(path) as file:
            arrays = {k: v for k, v in file.items() if _is_needed(path.stem, k)}
        kept = {k: _cut(path.stem, k, v) for k, v in arrays.items()}
        np.savez_compressed(DATA / path.name, **kept)
        text = json.dumps(_needed_facts(facts, kept), separators=(",", ":"))
        (DATA / path.name).with_suffix(".json").write_text(text + "\n")


def _is_needed(case: str, name: str) -> bool:
    if (
        name in _LEFT_OUT
        or "_assignment" in name
        or (case == "losses_mmseg" and name in _SHARED)
    ):
        return False
    # Columns of grad_norms.
    return not name.startswith("grad_norm.")


def _cut(case: str, name: str, array: np.ndarray) -> np.ndarray:
    if name.startswith("float32_diff."):
        # Deviations of single entries can be small by chance; the largest of all steps
        # is what tolerances are made of.
        return array.max(0)
    array = array[CUTS.get(case, {}).get(name, ...)]
    if array.dtype == np.float64 and array.ndim > 1 and not name.endswith("_norms"):
        # Costs 6e-8 of the largest value, a hundredth of the smallest tolerance.
        return array.astype(np.float32)
    return array


def _needed_facts(facts: dict[str, Any], kept: dict[str, np.ndarray]) -> dict[str, Any]:
    """Keeps the seed, what weights and inputs are drawn from, and what errors mean.

    `arrays` maps each name to its largest value and the original's error in float32.
    """
    needed: dict[str, Any] = {"seed": facts["seed"]}
    for part in (facts, *facts.get("variants", {}).values()):
        if "weights_check" in part:
            part["crc32"] = part["weights_check"]["crc32_float32_little_endian"]
    sets = ("state_dict", "factors", "crc32")
    needed |= {key: facts[key] for key in sets if key in facts}
    if "variants" in facts:
        needed["variants"] = {
            name: {k: v for k, v in part.items() if k in sets}
            for name, part in facts["variants"].items()
        }
    for key in ("config", "argmax_margin"):
        if key in facts:
            needed[key] = facts[key]
    needed["inputs"] = {
        name: {k: how[k] for k in ("key", "shape", "rule") if k in how}
        for name, how in facts["inputs"].items()
        if "key" in how
    }
    needed["arrays"] = {
        name: (array.get("abs_max"), array.get("torch_float32_max_abs_diff"))
        for name, array in facts["arrays"].items()
        if name in kept and not name.startswith("float32_diff.")
    }
    return needed


if __name__ == "__main__":
    main(Path(sys.argv[1]))
