"""On scenes the gate is what the context says: another one renames the objects."""

import numpy as np
import pytest

from encnet_jax.data.scenes import AMBIGUOUS_ROW, CLASS_NAMES, KINDS, draw
from tests.make_scenes_model import FOLDER

# Of each kind, in the order of `KINDS`.
GROUND, BODY = CLASS_NAMES[4:8], CLASS_NAMES[8:12]


def pixels_of(labels, name):
    return labels == CLASS_NAMES.index(name)


@pytest.mark.parametrize("here, there", [("harbor", "city"), ("city", "harbor")])
def test_gate_of_another_skyline_renames_the_objects(scenes, here, there):
    here, there = KINDS.index(here), KINDS.index(there)
    bodies = kept = renamed = 0
    for index in range(8):
        scene, other = (draw(99, index, kind=kind) for kind in (here, there))
        # The same objects on the same ground: only the skyline differs.
        np.testing.assert_array_equal(
            scene.image[AMBIGUOUS_ROW:], other.image[AMBIGUOUS_ROW:]
        )
        explanation = scenes.explain(scene.image, context_from=other.image)
        without = explanation.labels_without_context
        body = pixels_of(explanation.segmentation.labels, BODY[here])
        body &= pixels_of(scene.labels, BODY[here])
        bodies += body.sum()
        renamed += pixels_of(without, BODY[there])[body].sum()
        kept += pixels_of(without, BODY[here])[body].sum()
        largest = explanation.transitions[0]
        assert CLASS_NAMES[largest.from_class] == GROUND[here]
        assert CLASS_NAMES[largest.to_class] == GROUND[there]
    assert bodies > 500
    assert renamed > 0.9 * bodies and kept < 0.02 * bodies


def test_prediction_under_the_gate_of_a_scene_is_as_good_as_of_it(scenes):
    right, wrong = [], []
    for index in range(4):
        scene, other = (draw(98, index, kind=kind) for kind in (1, 0))
        explanation = scenes.explain(scene.image, context_from=other.image)
        ground = slice(AMBIGUOUS_ROW + 6, None)
        labels = explanation.labels_without_context[ground]
        right.append((labels == other.labels[ground]).mean())
        wrong.append((labels == scene.labels[ground]).mean())
    assert np.mean(right) > 0.85 and np.mean(wrong) < 0.05


def test_own_gate_changes_nothing(scenes):
    image = draw(99, 0).image
    explanation = scenes.explain(image, context_from=image)
    assert not explanation.changed.any() and explanation.transitions == ()
    assert explanation.raised == explanation.lowered == ()


def test_network_is_small_enough_for_the_repository():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000
