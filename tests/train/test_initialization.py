"""Starting from an earlier run: which weights are loaded, which stay initialized."""

import jax
import numpy as np
import pytest
from flax import nnx

from encnet_jax.config import default, save_config
from encnet_jax.convert.first_conv import FIRST_KERNELS, fit_first_kernel
from encnet_jax.data.bands import declare_bands
from encnet_jax.data.dataset_info import DatasetInfo, save_info, voc_colormap
from encnet_jax.data.object_dataset import ObjectDataset
from encnet_jax.errors import UserError
from encnet_jax.export.run import export_workdir
from encnet_jax.models import create_model
from encnet_jax.models.registry import CIFAR_MODELS
from encnet_jax.optimizer import create_optimizer
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.model_config import model_settings
from encnet_jax.run.sharding import mesh_of
from encnet_jax.run.state import create_train_state, flatten_paths, split_model
from encnet_jax.train.initialization import _CLASSIFIERS, load_initial_weights
from encnet_jax.train.resume import with_stored_weights
from encnet_jax.train.trainer import Trainer

NAMES = ("road", "car", "sky")


def settings(**changes):
    config = default()
    config.total_steps = 1
    small = dict(backbone="tiny", stem="plain", width=4, head_channels=8, num_codes=2)
    if changes.get("name") in CIFAR_MODELS:
        small = dict(width=4)
    config.model.update(small | changes)
    return config


def model_of(seed, classes=3, **changes):
    return create_model(
        num_classes=classes, rngs=nnx.Rngs(seed), **model_settings(settings(**changes))
    )


def leaves(model):
    return {
        ".".join(str(key.key) for key in path): np.asarray(leaf)
        for tree in split_model(model)[1:]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def write_run(workdir, **changes):
    """Writes a workdir at step 7; returns its arrays."""
    model_def, params, batch_stats = split_model(model_of(1, **changes))
    batch_stats = jax.tree.map(lambda x: x + 0.5, batch_stats)
    state = create_train_state(params, batch_stats, create_optimizer(lambda step: 0.0))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, 7)
    checkpoints.close()
    save_config(settings(**changes), workdir / "config.json")
    info = DatasetInfo("mine", NAMES, voc_colormap(3), {})
    save_info(info, workdir / "classes.json")
    return leaves(model_def.merge(params, batch_stats))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Returns a workdir of an earlier run, and its arrays."""
    workdir = tmp_path_factory.mktemp("earlier")
    return workdir, write_run(workdir)


def test_same_classes_take_every_array(earlier):
    workdir, expected = earlier
    model = model_of(2)
    text = load_initial_weights(model, str(workdir), NAMES)
    found = leaves(model)
    assert found.keys() == expected.keys() and "step 7" in text
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


@pytest.mark.parametrize("names", [("a", "b", "c"), ("road", "car", "sky", "sea")])
def test_other_classes_leave_the_classifiers_alone(earlier, names):
    workdir, expected = earlier
    model = model_of(2, len(names))
    before = leaves(model)
    text = load_initial_weights(model, str(workdir), names)
    classifiers = set()
    for path, array in leaves(model).items():
        if "classifier" in path or "se_head" in path:
            classifiers.add(path)
            np.testing.assert_array_equal(array, before[path], err_msg=path)
        else:
            np.testing.assert_array_equal(array, expected[path], err_msg=path)
    # Kernel and bias of the main, the auxiliary and the SE classifier.
    assert len(classifiers) == 6 and "initial values" in text


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (dict(), 6),
        (dict(se_stages=(3, 4)), 8),
        (dict(name="fcn"), 4),
        (dict(name="pspnet"), 4),
        (dict(name="deeplabv3"), 4),
        (dict(name="resnet14"), 2),
        (dict(name="se_resnet14", width=16), 2),
        (dict(name="encnet14"), 2),
    ],
)
def test_arrays_that_depend_on_the_classes_start_anew(
    tmp_path, monkeypatch, changes, count
):
    def arrays(classes):
        model = nnx.eval_shape(lambda: model_of(0, classes, **changes))
        _, *parts = split_model(model)
        return {
            path: leaf for part in parts for path, leaf in flatten_paths(part).items()
        }

    three, four = arrays(3), arrays(4)
    depend = {path for path in three if three[path].shape != four[path].shape}
    assert len(depend) == count
    assert {path for path in three if path.startswith(_CLASSIFIERS)} == depend


@pytest.mark.parametrize(
    ("before", "names", "kept"),
    [
        (dict(se_stages=(3, 4)), ("a", "b", "c"), 8),
        (dict(se_stages=(3, 4)), (*NAMES, "sea"), 8),
        (dict(name="resnet14"), ("a", "b", "c"), 2),
        (dict(name="resnet14"), (*NAMES, "sea"), 2),
    ],
)
def test_classifiers_of_every_kind_are_left_alone(tmp_path, before, names, kept):
    expected, model = write_run(tmp_path, **before), model_of(2, len(names), **before)
    initial = leaves(model)
    text = load_initial_weights(model, str(tmp_path), names)
    assert "other classes, so initial values kept" in text
    found = leaves(model)
    same = {path for path in found if path.startswith(_CLASSIFIERS)}
    assert len(same) == kept
    for path, array in found.items():
        source = initial if path in same else expected
        np.testing.assert_array_equal(array, source[path], err_msg=path)


def test_branch_of_stage_3_may_be_new(earlier):
    workdir, expected = earlier
    model = model_of(2, se_stages=(3, 4))
    initial = leaves(model)
    text = load_initial_weights(model, str(workdir), NAMES)
    assert "another stage3_context, so initial values kept: stage3_" in text
    assert_loaded_but(model, "stage3_", initial, expected)


def test_model_folder_counts_as_its_run(earlier, tmp_path):
    workdir, expected = earlier
    export_workdir(workdir, tmp_path / "model", "pretrained")
    model = model_of(2)
    text = load_initial_weights(model, str(tmp_path / "model"), NAMES)
    assert "step 7" in text
    for path, array in leaves(model).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    before = leaves(model)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="model.safetensors: truncated or damaged"):
        load_initial_weights(model, str(tmp_path / "model"), NAMES)
    for path, array in leaves(model).items():
        np.testing.assert_array_equal(array, before[path], err_msg=path)


def assert_loaded_but(model, prefix, before, expected):
    for path, array in leaves(model).items():
        source = before if path.startswith(prefix) else expected
        np.testing.assert_array_equal(array, source[path], err_msg=path)


def test_of_another_head_nothing_is_loaded_but_the_rest(earlier):
    workdir, expected = earlier
    model = model_of(2, head_channels=16)
    before = leaves(model)
    text = load_initial_weights(model, str(workdir), NAMES)
    assert "another head, so initial values kept: head." in text
    assert_loaded_but(model, "head.", before, expected)


def test_head_is_kept_where_only_the_auxiliary_one_is_another(tmp_path):
    model, expected = model_of(2), write_run(tmp_path, aux_head=False)
    before = leaves(model)
    text = load_initial_weights(model, str(tmp_path), NAMES)
    assert "another aux_head, so initial values kept: aux_head." in text
    assert_loaded_but(model, "aux_head.", before, expected)
    # Of other classes the classifiers start anew as well.
    text = load_initial_weights(model_of(2, 4), str(tmp_path), (*NAMES, "tree"))
    assert "other classes and another aux_head, so initial values kept: " in text


def test_mistyped_workdir_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file or folder; .* the workdir"):
        load_initial_weights(model_of(2), str(tmp_path / "nothing"), NAMES)


def test_unused_part_is_reported(earlier):
    text = load_initial_weights(model_of(2, aux_head=False), str(earlier[0]), NAMES)
    assert "not used by this model: aux_head." in text


def test_another_model_is_refused_and_nothing_changes(earlier):
    model = model_of(2, width=8)
    before = leaves(model)
    with pytest.raises(UserError, match="model.weights=.*another shape.*backbone"):
        load_initial_weights(model, str(earlier[0]), NAMES)
    for path, array in leaves(model).items():
        np.testing.assert_array_equal(array, before[path], err_msg=path)


def test_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}.*is .* the workdir"):
        load_initial_weights(model_of(2), str(tmp_path), NAMES)


@pytest.mark.parametrize("path", ["backbone.stem.0.conv.kernel", "stem.kernel"])
def test_first_convolution_takes_other_channels(path):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2)).astype(np.float32)
    stored, wanted = {path: kernel}, {path: np.zeros((3, 3, 4, 2))}
    text = fit_first_kernel(stored, wanted, (2, 1, 0))
    assert "first convolution: 4 instead of 3 channels; 2, 1, 0 have" in text
    expected = np.concatenate([kernel[:, :, ::-1], kernel.mean(2, keepdims=True)], 2)
    np.testing.assert_allclose(stored[path], expected, rtol=1e-6)
    assert not fit_first_kernel(stored, wanted, ())
    with pytest.raises(UserError, match="images of 4 channels; data.channels is 3"):
        fit_first_kernel(stored, {path: kernel}, ())


@pytest.mark.parametrize("value_range", [(), (0, 255)])
def test_order_of_channels_counts_for_bands_alone(value_range, tmp_path, monkeypatch):
    found = []

    def load(model, weights, names, rgb_channels):
        found.append(rgb_channels)
        raise UserError("enough")

    monkeypatch.setattr("encnet_jax.train.trainer.load_initial_weights", load)
    info = DatasetInfo("mine", NAMES, voc_colormap(3), {}, display_channels=(2, 1, 0))
    dataset = ObjectDataset(declare_bands(info, 3, value_range), [])
    config = settings(weights="somewhere.pth")
    with pytest.raises(UserError, match="enough"):
        Trainer(config, tmp_path, mesh_of(jax.devices()[:1]), dataset, dataset)
    assert found == [(2, 1, 0) if value_range else ()]


def test_first_convolutions_are_those_of_the_networks(earlier):
    assert FIRST_KERNELS[0] in earlier[1]
    network = nnx.eval_shape(lambda: create_model("encnet14", num_classes=3, width=4))
    paths = [".".join(map(str, path)) for path, _ in nnx.iter_graph(network)]
    assert FIRST_KERNELS[1] in paths


def test_run_with_steps_keeps_the_record_of_where_it_began(tmp_path, caplog):
    given = settings(weights="hf://owner/model")
    save_config(settings(weights="backbone.npz"), tmp_path / "config.json")
    assert with_stored_weights(given, tmp_path) is given  # not one step was taken
    model = model_of(0)
    _, params, batch_stats = split_model(model)
    checkpoints = Checkpoints(tmp_path)
    tx = create_optimizer(0.1)
    checkpoints.save(create_train_state(params, batch_stats, tx), 3)
    checkpoints.close()
    assert with_stored_weights(given, tmp_path).model.weights == "backbone.npz"
    expected = f"model.weights=hf://owner/model is not read: the run in {tmp_path} cont"
    assert caplog.text.count(expected) == 1
    assert given.model.weights == "hf://owner/model"
    caplog.clear()
    # Without the flag of its first start, too.
    assert with_stored_weights(settings(), tmp_path).model.weights == "backbone.npz"
    assert not caplog.text
