"""Tests of encnet_jax.convert.load: every entry is loaded, dropped or an error."""

import dataclasses
import errno
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_networks import (
    fcn_weights,
    full_shapes,
    random_weights,
    small_shapes,
    small_weights,
)

from encnet_jax.config import load_config
from encnet_jax.convert.infer_config import describe_torch_weights
from encnet_jax.convert.key_mapping import find_key_mapping
from encnet_jax.convert.load import load_torch_model, load_torch_weights
from encnet_jax.convert.load_plan import LoadPlan
from encnet_jax.convert.workdir import write_workdir
from encnet_jax.data.dataset_info import load_info
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.models.resnet import ResNet
from encnet_jax.run.checkpoint import Checkpoints
from encnet_jax.run.model_config import check_config, model_settings
from encnet_jax.run.state import split_model
from tests.convert.test_torch_reader import (
    TENSOR,
    integer,
    sizes,
    storage,
    string,
    write_zip,
)

ADE, PCONTEXT = "encnet_resnet50s_ade20k", "encnet_resnet50s_pcontext"
MMSEG, TIMM = "mmseg_encnet_r50_d8", "timm_resnet50d"
WHOLE = (ADE, PCONTEXT, MMSEG)
_WRITER = "orbax.checkpoint.AsyncCheckpointer"
BACKBONES = ("torchvision_resnet18", "torchvision_resnet50", TIMM)


def abstract_model(weights, **changes):
    """Returns an abstract model for these weights, which is fast to build."""
    settings = dict(name="encnet", num_classes=5, head_channels=16, num_codes=4)
    settings |= describe_torch_weights(weights).settings | changes
    return nnx.eval_shape(lambda: create_model(**settings))


@pytest.fixture(scope="module")
def ade_model():
    """Returns an initialized model for a small `ADE` with 6 classes; clone it."""
    shapes = small_shapes(ADE)
    fewer = {n: tuple(6 if d == 150 else d for d in s) for n, s in shapes.items()}
    # Faster than `create_model`.
    model, _ = load_torch_model(random_weights(fewer, seed=1))
    return model


def arrays(model) -> dict[str, np.ndarray]:
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    return {".".join(str(k.key) for k in path): np.asarray(v) for path, v in leaves}


def without(weights, part):
    return {name: array for name, array in weights.items() if part not in name}


def assert_complete(report, weights, model):
    assert set(report.loaded) | set(report.dropped) == set(weights)
    assert not set(report.loaded) & set(report.dropped)
    filled = [*report.loaded.values(), *report.left_initialized]
    assert sorted(filled) == sorted(p for p, _ in path_variables(model))


def path_variables(model):
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param | nnx.BatchStat):
            yield ".".join(map(str, path)), node


@pytest.mark.parametrize("case", WHOLE)
def test_whole_network_fills_every_parameter_with_its_entry(case):
    weights = small_weights(case)
    model = abstract_model(weights)
    report = load_torch_weights(model, weights)
    assert_complete(report, weights, model)
    assert report.left_initialized == ()
    assert set(report.dropped) == {n for n in weights if n.endswith("tracked")}
    values = arrays(model)
    for name, path in report.loaded.items():
        ours, theirs = values[path], weights[name]
        if path.endswith(".kernel") and theirs.ndim == 4:
            theirs = np.einsum("oihw->hwio", theirs)
        elif path.endswith(".kernel"):
            theirs = np.einsum("oi->io", theirs)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


PATHS = {
    ADE: {
        "pretrained.conv1.6.weight": "backbone.stem.2.conv.kernel",
        "pretrained.bn1.running_var": "backbone.stem.2.norm.var",
        "pretrained.layer2.0.bn3.weight": "backbone.stages.1.0.layers.2.norm.scale",
        "head.encmodule.encoding.3.scale": "head.context.encoding.scale",
        "head.encmodule.encoding.4.weight": "head.context.norm.scale",
        "head.encmodule.fc.0.weight": "head.context.gate.kernel",
        "head.encmodule.selayer.bias": "head.context.se_head.bias",
        "head.conv6.1.bias": "head.classifier.conv.bias",
        "auxlayer.conv5.4.weight": "aux_head.classifier.conv.kernel",
    },
    PCONTEXT: {
        "head.connect.1.0.weight": "head.lateral.1.conv.kernel",
        "head.fusion.1.bias": "head.fuse.norm.bias",
    },
    MMSEG: {
        "backbone.stem.7.running_mean": "backbone.stem.2.norm.mean",
        "backbone.layer1.0.downsample.0.weight": (
            "backbone.stages.0.0.shortcut.projection.conv.kernel"
        ),
        "decode_head.bottleneck.bn.bias": "head.reduce.norm.bias",
        "decode_head.enc_module.encoding.1.running_var": "head.context.norm.var",
        "decode_head.se_layer.weight": "head.context.se_head.kernel",
        "auxiliary_head.convs.0.conv.weight": "aux_head.reduce.conv.kernel",
    },
    TIMM: {
        "conv1.3.weight": "backbone.stem.1.conv.kernel",
        "bn1.bias": "backbone.stem.2.norm.bias",
        "layer2.0.downsample.1.weight": (
            "backbone.stages.1.0.shortcut.projection.conv.kernel"
        ),
        "layer2.0.downsample.2.weight": (
            "backbone.stages.1.0.shortcut.projection.norm.scale"
        ),
    },
}


@pytest.mark.parametrize("case", PATHS)
def test_entries_go_to_the_corresponding_layers(case):
    weights = small_weights(case)
    loaded = load_torch_weights(abstract_model(weights), weights).loaded
    assert {name: loaded[name] for name in PATHS[case]} == PATHS[case]


@pytest.mark.parametrize("case", (*WHOLE, *BACKBONES, "backbone_resnet50_dilated"))
def test_original_networks_fit_the_inferred_model(case):
    weights = {
        # One element in memory each: only keys, shapes and dtypes matter.
        name: np.broadcast_to(
            np.int64(0) if name.endswith("tracked") else np.float32(0), shape
        )
        for name, shape in full_shapes(case).items()
    }
    model = abstract_model(weights)
    mapping = find_key_mapping(weights, "auto", "")
    plan = LoadPlan(model, weights, mapping, "strict")
    assert plan.errors() == []
    assert set(plan.loaded) | set(plan.dropped) == set(weights)


@pytest.mark.parametrize("case", BACKBONES)
def test_backbone_leaves_the_head_initialized(case):
    weights = small_weights(case)
    model = abstract_model(weights)
    report = load_torch_weights(model, weights)
    assert_complete(report, weights, model)
    assert all(path.startswith("backbone.") for path in report.loaded.values())
    assert not any(path.startswith("backbone.") for path in report.left_initialized)
    assert "29 left initialized: aux_head.classifier.conv" in str(report)
    assert report.dropped["fc.bias"] == "classifier of the backbone's pretraining"


def test_bare_resnet_loads_a_backbone():
    weights = small_weights("torchvision_resnet18")
    options = dict(stem="plain", width=8)
    model = nnx.eval_shape(lambda: ResNet("resnet18", **options, rngs=nnx.Rngs(0)))
    report = load_torch_weights(model, weights)
    assert report.left_initialized == () and len(report.loaded) == 100
    values = arrays(model)["stem.0.conv.kernel"]
    np.testing.assert_array_equal(values[0, 1, 2], weights["conv1.weight"][:, 2, 0, 1])


def test_bare_resnet_loads_the_backbone_of_a_whole_network_with_skip():
    weights = small_weights(MMSEG)
    options = dict(stem_width=32, width=8)
    model = nnx.eval_shape(lambda: ResNet("tiny", **options, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="unexpected keys: decode_head"):
        load_torch_weights(model, weights)
    report = load_torch_weights(model, weights, head="skip")
    assert set(report.loaded) | set(report.dropped) == set(weights)
    assert report.dropped["decode_head.conv_seg.bias"].startswith(
        "not part of the backbone"
    )


def test_names_of_a_file_do_not_reach_the_terminal_as_they_are():
    weights = small_weights(ADE)
    weights["\x1b]0;mine\x07\nWARNING: all is well.num_batches_tracked"] = np.ones(())
    report = load_torch_weights(abstract_model(weights), weights)
    report = dataclasses.replace(report, dropped=dict(reversed(report.dropped.items())))
    text = str(report)
    assert "\x1b" not in text and "\nWARNING" not in text
    assert r"\x1b]0;mine\x07 WARNING: all is well.num_batches_tracked" in text


def test_pretraining_classifier_of_the_first_release_is_dropped():
    weights = small_weights(ADE)
    extra = {"fc.weight": np.zeros((1000, 256)), "fc.bias": np.zeros(1000)}
    weights |= {f"pretrained.{name}": array for name, array in extra.items()}
    report = load_torch_weights(abstract_model(weights), weights)
    reason = "classifier of the backbone's pretraining"
    assert [n for n, why in report.dropped.items() if why == reason] == [
        "pretrained.fc.weight",
        "pretrained.fc.bias",
    ]


def test_fcn_of_pytorch_encoding_is_loaded():
    weights = fcn_weights()
    model, description = load_torch_model(weights)
    assert (description.settings["name"], description.settings["num_classes"]) == (
        "fcn",
        150,
    )
    bias = model.head.classifier.conv.bias[...]
    np.testing.assert_array_equal(bias, weights["head.conv5.4.bias"])


def test_one_error_lists_all_mismatches_and_nothing_changes(ade_model):
    model = nnx.clone(ade_model)
    before = arrays(model)
    weights = small_weights(ADE)
    del weights["pretrained.layer3.0.bn1.running_mean"]
    weights["pretrained.layer3.7.conv1.weight"] = np.zeros((1, 1, 1, 1))
    weights["head.conv5.0.weight"] = weights["head.conv5.0.weight"][:, :5]
    weights["head.conv5.1.bias"] = np.zeros(64, np.int32)
    with pytest.raises(UserError) as error:
        load_torch_weights(model, weights)
    message = str(error.value)
    for part in (
        "1 unexpected keys: pretrained.layer3.7.conv1.weight",
        "backbone.stages.2.0.layers.0.norm.mean (pretrained.layer3.0.bn1.running_mean)",
        "head.conv5.0.weight is (64, 5, 3, 3), not (64, 256, 3, 3)",
        "head.conv5.1.bias is int32, not floating-point",
        "head.conv6.1.weight is (150, 64, 1, 1), not (6, 64, 1, 1)",
        "and 2 more",
    ):
        assert part in message
    assert "\n" not in message and len(message) < 2000
    for path, array in arrays(model).items():
        np.testing.assert_array_equal(array, before[path])


def test_other_depth_is_named():
    weights = small_weights(ADE)
    model = abstract_model(weights, backbone="resnet18")
    with pytest.raises(
        UserError, match=r"The weights are pytorch_encoding: tiny, stem deep"
    ):
        load_torch_weights(model, weights)


@pytest.mark.parametrize("case", (TIMM, "torchvision_resnet50"))
def test_other_shortcut_which_no_shape_reveals_is_an_error(case):
    weights = small_weights(case)
    model = abstract_model(weights, avg_down=case != TIMM)
    with pytest.raises(UserError, match=f"avg_down={case == TIMM} in the weights"):
        load_torch_weights(model, weights)


def test_reinitialize_leaves_out_classifiers_of_other_classes(ade_model):
    weights = small_weights(ADE)
    model = nnx.clone(ade_model)
    with pytest.raises(UserError, match="6 mismatched keys: head.encmodule.selayer"):
        load_torch_weights(model, weights)
    report = load_torch_weights(model, weights, head="reinitialize")
    assert_complete(report, weights, model)
    reasons = {n: why for n, why in report.dropped.items() if "classes" in why}
    assert set(reasons.values()) == {"150 classes instead of 6"} and len(reasons) == 6
    values, before = arrays(model), arrays(ade_model)
    assert len(report.left_initialized) == 6
    for path in report.left_initialized:
        np.testing.assert_array_equal(values[path], before[path])


def test_reinitialize_keeps_classifiers_that_fit():
    weights = small_weights(MMSEG)
    report = load_torch_weights(abstract_model(weights), weights, head="reinitialize")
    assert report.left_initialized == ()


def test_skip_loads_only_the_backbone(ade_model):
    weights = small_weights(ADE)
    model = nnx.clone(ade_model)
    report = load_torch_weights(model, weights, head="skip")
    assert_complete(report, weights, model)
    assert all(path.startswith("backbone.") for path in report.loaded.values())


@pytest.mark.parametrize("case", (ADE, MMSEG))
def test_branches_that_the_model_lacks_are_dropped(case):
    weights = small_weights(case)
    model = abstract_model(weights, aux_head=False, se_loss=False)
    report = load_torch_weights(model, weights)
    assert_complete(report, weights, model)
    dropped = {n for n, why in report.dropped.items() if "the model has no" in why}
    branches = re.compile(r"auxlayer|auxiliary_head|selayer|se_layer")
    named = {n for n in weights if branches.match(n) or branches.search(n)}
    assert dropped == {n for n in named if not n.endswith("tracked")}


def test_branch_that_the_weights_lack_is_an_error():
    weights = without(small_weights(ADE), "auxlayer")
    model = abstract_model(weights, aux_head=True)
    with pytest.raises(UserError, match="7 missing keys: aux_head"):
        load_torch_weights(model, weights)
    load_torch_weights(abstract_model(weights), weights)


def test_unknown_options_are_named(ade_model):
    with pytest.raises(UserError, match="head='no'.*strict, reinitialize, skip"):
        load_torch_weights(ade_model, {}, head="no")
    with pytest.raises(UserError, match="source='keras'.*mmseg"):
        load_torch_weights(ade_model, {}, source="keras")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_other_float_types_become_float32(dtype):
    weights = {k: v.astype(dtype) for k, v in small_weights(MMSEG).items()}
    model = abstract_model(weights)
    load_torch_weights(model, weights)
    scale = model.backbone.stem[0].norm.scale[...]
    assert scale.dtype == jnp.float32
    expected = weights["backbone.stem.1.weight"].astype(np.float32)
    np.testing.assert_array_equal(scale, expected)


def aligned_copy(array):
    """Returns a copy aligned such that JAX could alias its memory."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def test_loaded_model_does_not_alias_the_arrays():
    weights = {k: aligned_copy(v) for k, v in small_weights(MMSEG).items()}
    model, _ = load_torch_model(weights)
    before = {path: array.copy() for path, array in arrays(model).items()}
    for array in weights.values():
        array[...] = 0
    for path, array in arrays(model).items():
        np.testing.assert_array_equal(array, before[path])


def write_pth(path, weights):
    """Writes a state dict as torch.save does, instruction by instruction."""
    program, members = b"}(", {}
    for index, (name, array) in enumerate(weights.items()):
        array = np.asarray(array, np.float32)  # counters too: only the keys matter
        strides = [s // 4 for s in array.strides]
        program += string(name) + TENSOR + b"(" + storage(array.size, str(index))
        program += integer(0) + sizes(*array.shape) + sizes(*strides) + b"\x89}tR"
        members[f"data/{index}"] = array.tobytes()
    data = members.pop("data/0")
    wrapped = b"}" + string("state_dict") + program + b"us"
    return write_zip(path, wrapped, data, **members)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_give_the_same_model_as_arrays(tmp_path, suffix):
    weights = small_weights(ADE)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        write_pth(path, weights)
    else:
        from safetensors.numpy import save_file

        save_file(weights, path)
    from_file, _ = load_torch_model(path)
    from_arrays, _ = load_torch_model(weights)
    expected = arrays(from_arrays)
    for name, array in arrays(from_file).items():
        np.testing.assert_array_equal(array, expected[name])


def test_file_is_named_in_errors(tmp_path):
    path = write_pth(tmp_path / "weights.pth", small_weights(TIMM))
    with pytest.raises(
        UserError, match=r"weights\.pth: holds only a backbone \(timm: tiny"
    ):
        load_torch_model(path)


def test_loaded_model_has_rng_streams_for_dropout(ade_model):
    # It was built abstractly, and dropout has RNG state of its own.
    classifier = nnx.clone(ade_model).head.classifier
    x = jnp.ones((1, 4, 4, 64))
    assert not np.array_equal(classifier(x), classifier(x))
    classifier.eval()
    np.testing.assert_array_equal(classifier(x), classifier(x))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model."])
def test_wrapped_network_is_loaded_from_arrays_as_from_a_file(prefix, tmp_path):
    weights = small_weights(MMSEG)
    wrapped = {prefix + key: array for key, array in weights.items()}
    expected = load_torch_weights(abstract_model(weights), weights).loaded
    for source in (wrapped, write_pth(tmp_path / "weights.pth", wrapped)):
        report = load_torch_weights(abstract_model(weights), source)
        assert report.loaded == expected


def test_network_is_chosen_by_prefix(tmp_path):
    weights = small_weights(MMSEG)
    both = {f"model.{key}": array for key, array in weights.items()}
    both["criterion.weight"] = np.ones(19, np.float32)
    path = write_pth(tmp_path / "lightning.pth", both)
    with pytest.raises(UserError, match="keys of no known source.*--prefix"):
        load_torch_model(path)
    model, _ = load_torch_model(path, prefix="model.")
    expected = arrays(load_torch_model(weights)[0])
    for name, array in arrays(model).items():
        np.testing.assert_array_equal(array, expected[name])
    write_workdir(path, tmp_path / "run", prefix="model")
    assert (tmp_path / "run" / "config.json").is_file()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_tensors_that_are_not_finite_are_listed(value):
    weights = small_weights(MMSEG)
    names = ["backbone.layer3.0.bn1.running_var", "decode_head.conv_seg.weight"]
    for name in names:
        weights[name] = weights[name].astype(np.float64)
        weights[name].flat[-1] = value
    model = abstract_model(weights)
    with pytest.raises(UserError) as raised:
        load_torch_weights(model, without(weights, "se_layer"))
    message = str(raised.value)
    assert f"2 tensors with NaN or infinity: {', '.join(names)}" in message
    assert "2 missing keys" in message
    # What is not loaded need not be finite.
    weights[names[0]] = np.ones_like(weights[names[0]])
    load_torch_weights(abstract_model(weights), weights, head="skip")


def test_settings_can_be_overridden():
    weights = small_weights(MMSEG)
    model, description = load_torch_model(weights, align_corners=True)
    assert model.align_corners and description.settings["align_corners"]


def test_workdir_holds_the_model_that_its_config_builds(tmp_path):
    weights = small_weights(MMSEG)
    path = write_pth(tmp_path / "weights.pth", weights)
    names = [f"thing {i}" for i in range(19)]
    (tmp_path / "names.json").write_text(json.dumps(names))
    workdir = tmp_path / "run"
    text = write_workdir(path, workdir, classes=str(tmp_path / "names.json"))
    assert "mmseg: tiny" in text and str(workdir) in text
    info = load_info(workdir / "classes.json")
    assert info.class_names == tuple(names) and len(set(info.colors)) == 19
    config = load_config(workdir / "config.json")
    check_config(config)
    assert config.model.unbiased_running_var and not config.model.align_corners
    settings = model_settings(config)
    model = nnx.eval_shape(lambda: create_model(num_classes=19, **settings))
    model_def, params, batch_stats = split_model(model)
    params, batch_stats, step = Checkpoints(workdir).restore_model(params, batch_stats)
    assert step == 0
    expected = arrays(load_torch_model(weights)[0])
    found = arrays(model_def.merge(params, batch_stats))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
    with pytest.raises(UserError, match="config.json: exists"):
        write_workdir(path, workdir)


def test_class_names_are_the_lines_of_a_file(tmp_path):
    names = [f"thing {i}" for i in range(19)]
    (tmp_path / "names.txt").write_text("\ufeff" + "\n".join(names) + "\n\n")
    file = str(tmp_path / "names.txt")
    write_workdir(small_weights(MMSEG), tmp_path / "run", classes=file)
    assert load_info(tmp_path / "run/classes.json").class_names == tuple(names)
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=f"^--classes={file}: not UTF-8"):
        write_workdir(small_weights(MMSEG), tmp_path / "other", classes=file)


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize(
    "failing",
    [
        f"{_WRITER}.save",
        f"{_WRITER}.wait_until_finished",
        "encnet_jax.config.save_config",
    ],
)
def test_full_disk_is_an_error_that_leaves_no_workdir(
    tmp_path, monkeypatch, existed, failing
):
    def fail(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    weights, workdir = small_weights(MMSEG), tmp_path / "run"
    if existed:
        workdir.mkdir()
        (workdir / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(UserError, match=r"^--output=.*run: .*(disk|space)"):
            write_workdir(weights, workdir)
    left = [path.name for path in tmp_path.rglob("*")]
    assert left == (["run", "notes.txt"] if existed else [])
    write_workdir(weights, workdir)
    assert Checkpoints(workdir).steps() == [0]


@pytest.mark.parametrize("name", ["classes.json", "metrics.jsonl"])
def test_files_of_the_user_are_not_replaced_by_a_workdir(tmp_path, name):
    path = write_pth(tmp_path / "weights.pth", small_weights(MMSEG))
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: exists; choose another --output"):
        write_workdir(path, tmp_path)
    with pytest.raises(UserError, match="--output=.*weights.pth: is a file"):
        write_workdir(path, path)
    assert (tmp_path / name).read_text() == "mine" and len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "a,b"}, "--classes=a,b: 2 classes; the network has 19"),
        ({"classes": "none.json"}, "--classes=none.json: cannot be read: No such file"),
        ({"classes": "a,b, a"}, "--classes=a,b, a: 'a': must be a name, given once"),
        ({"classes": "a,,b"}, "--classes=a,,b: '': must be a name, given once"),
        ({"dataset": "moon"}, "--dataset=moon: allowed are"),
        ({"dataset": "camvid"}, "--dataset=camvid: 11 classes; the network has 19"),
    ],
)
def test_wrong_class_names_are_rejected(tmp_path, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        write_workdir(small_weights(MMSEG), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_more_classes_than_label_maps_hold_are_rejected(tmp_path):
    shapes = small_shapes(MMSEG)
    more = {k: tuple(256 if n == 19 else n for n in v) for k, v in shapes.items()}
    with pytest.raises(UserError, match="num_classes=256: .* at most 255; label 255 "):
        write_workdir(random_weights(more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_command_ends_with_one_line_and_code_2(tmp_path):
    command = [sys.executable, "-m", "encnet_jax.convert", "none.pth"]
    command += ["--output", str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: none.pth: ")
    assert result.stderr.count("\n") == 1
