"""Tests of `scenes`: by construction, only context determines the classes."""

import numpy as np
import pytest

from encnet_jax.data import scenes

NUM_CLASSES = len(scenes.CLASS_NAMES)
NUM_KINDS = len(scenes.KINDS)
CUT = scenes.CUE_ROWS


@pytest.fixture(scope="module")
def samples() -> list[scenes.Scene]:
    """Returns the first 120 scenes of a data set."""
    return [scenes.draw(5, index) for index in range(120)]


@pytest.fixture(scope="module")
def families() -> list[list[scenes.Scene]]:
    """Returns 40 scenes, each drawn in all kinds."""
    return [
        [scenes.draw(5, index, kind=kind) for kind in range(NUM_KINDS)]
        for index in range(40)
    ]


def test_draw_is_a_function_of_seed_and_index():
    first, again = scenes.draw(1, 2), scenes.draw(1, 2)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.kind == again.kind
    for other in (scenes.draw(1, 3), scenes.draw(2, 2), scenes.draw(2, 1)):
        assert (first.image[CUT:] != other.image[CUT:]).mean() > 0.1


def test_forcing_the_own_kind_changes_nothing(samples):
    for index, own in enumerate(samples[:12]):
        forced = scenes.draw(5, index, kind=own.kind)
        np.testing.assert_array_equal(own.image, forced.image)
        np.testing.assert_array_equal(own.labels, forced.labels)


@pytest.mark.parametrize("kind", [-1, NUM_KINDS])
def test_unknown_kind_raises(kind):
    with pytest.raises(ValueError, match=f"got {kind}"):
        scenes.draw(0, 0, kind=kind)


def test_names_and_colors_match():
    assert len(set(scenes.CLASS_NAMES)) == NUM_CLASSES
    colors = np.array(scenes.COLORS, int)
    assert colors.shape == (NUM_CLASSES, 3)
    assert colors.min() >= 0 and colors.max() <= 255
    apart = np.abs(colors[:, None] - colors).sum(-1) + 1000 * np.eye(NUM_CLASSES)
    assert apart.min() >= 40


def test_images_and_labels_have_their_types(samples):
    for scene in samples:
        assert scene.image.shape == (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 3)
        assert scene.labels.shape == (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE)
        assert scene.image.dtype == scene.labels.dtype == np.uint8
        known = scene.labels < NUM_CLASSES
        assert (known | (scene.labels == scenes.IGNORE_LABEL)).all()


def test_every_class_and_kind_occurs_and_void_is_rare(samples):
    labels = np.stack([scene.labels for scene in samples])
    shares = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert (shares[:NUM_CLASSES] > 5e-4).all()
    assert 0.005 < shares[scenes.IGNORE_LABEL] < 0.05
    assert shares[list(scenes.AMBIGUOUS)].sum() > 0.35
    kinds = np.bincount([scene.kind for scene in samples], minlength=NUM_KINDS)
    assert kinds.min() > len(samples) / NUM_KINDS / 2


def test_kind_changes_the_image_in_the_cue_rows_only(families):
    for first, *others in families:
        for other in others:
            np.testing.assert_array_equal(first.image[CUT:], other.image[CUT:])
            assert (first.image[:CUT] != other.image[:CUT]).mean() > 0.1
            np.testing.assert_array_equal(first.boxes, other.boxes)


def test_kind_relabels_ground_and_objects_and_nothing_else(families):
    ambiguous = np.array(scenes.AMBIGUOUS).reshape(-1, NUM_KINDS)
    for family in families:
        for kind, scene in enumerate(family):
            renamed = family[0].labels[CUT:].copy()
            for names in ambiguous:
                renamed[family[0].labels[CUT:] == names[0]] = names[kind]
            np.testing.assert_array_equal(scene.labels[CUT:], renamed)
            present = set(np.unique(scene.labels)) & set(scenes.AMBIGUOUS)
            assert present <= set(ambiguous[:, kind])


def test_cue_lies_outside_the_receptive_field_of_the_small_backbone(families):
    for family in families:
        images = np.stack([scene.image for scene in family])
        cue_rows = np.nonzero((images != images[0]).any((0, 2, 3)))[0]
        for scene in family:
            rows = np.nonzero(np.isin(scene.labels, scenes.AMBIGUOUS).any(1))[0]
            assert rows.min() >= scenes.AMBIGUOUS_ROW
            assert rows.min() - cue_rows.max() >= 45


def test_farm_and_winter_share_their_mean_color(families):
    farm, winter = scenes.KINDS.index("farm"), scenes.KINDS.index("winter")
    means = np.array([[s.image[:CUT].mean((0, 1)) for s in f] for f in families])
    gaps = np.abs(means.mean(0)[:, None] - means.mean(0)).max(-1)
    assert gaps[farm, winter] < 1
    gaps[[farm, winter], [winter, farm]] = np.inf
    np.fill_diagonal(gaps, np.inf)
    assert gaps.min() > 10


def test_objects_have_their_sizes_and_boxes(samples):
    sizes = []
    for scene in samples:
        assert 3 <= len(scene.boxes) <= 9
        outside = scene.labels.copy()
        for shape, left, top, right, bottom in scene.boxes:
            inside = scene.labels[top:bottom, left:right]
            assert (inside == 8 + NUM_KINDS * shape + scene.kind).sum() >= 8
            outside[top:bottom, left:right] = 0
            sizes.append(right - left)
        assert not (outside[outside != scenes.IGNORE_LABEL] >= 8).any()
    assert min(sizes) >= 6 and max(sizes) <= 28
    assert 0.15 < np.mean(np.array(sizes) <= scenes.SMALL_SIZE) < 0.5


def test_scenes_have_no_left_right_bias():
    # Averaged over many samples, the two halves agree, also in the cue rows.
    means = np.mean([scenes.draw(9, i).image for i in range(200)], axis=0)
    halves = means[:, :64].mean(1), means[:, 64:].mean(1)
    assert np.abs(halves[0] - halves[1]).max() < 12


def test_builder_writes_what_draw_returns(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    from encnet_jax.data.builders.scenes import Scenes, ScenesConfig

    config = ScenesConfig(name="tiny", seed=7, train=4, validation=2, test=2)
    builder = Scenes(data_dir=tmp_path, config=config)
    builder.download_and_prepare()
    start = 0
    for split, count in (("train", 4), ("validation", 2), ("test", 2)):
        examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        assert len(examples) == builder.info.splits[split].num_examples == count
        for index, example in enumerate(examples, start):
            scene = scenes.draw(7, index)
            np.testing.assert_array_equal(example["image"], scene.image)
            np.testing.assert_array_equal(example["label"][..., 0], scene.labels)
            assert example["id"].decode() == f"scenes_7_{index:06d}"
        start += count


def test_default_sizes_are_4000_400_400():
    pytest.importorskip("tensorflow_datasets")
    from encnet_jax.data.builders.scenes import Scenes

    config = Scenes.BUILDER_CONFIGS[0]
    assert (config.train, config.validation, config.test) == (4000, 400, 400)
