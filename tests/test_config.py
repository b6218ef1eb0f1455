"""The configuration: every file valid, every bad value named."""

import functools
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from absl import flags
from flax import nnx
from ml_collections import config_flags

from encnet_jax import cli
from encnet_jax import config as config_module
from encnet_jax.config import (
    default,
    default_workdir,
    find_config,
    leaves,
    load_config,
    recipes,
    save_config,
)
from encnet_jax.data.registry import dataset_info
from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.run.model_config import check_config, model_settings
from encnet_jax.run.state import split_model
from encnet_jax.train.settings import check_task
from tests.commands import errors, run

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "ade20k": ("r50", "r101", "paper-r50", "paper-r101"),
    "camvid": ("gpu", "weighted", "cpu", "dinov2"),
    "cifar10": ("encnet_16k64d", "encnet_32k128d-drop", "resnet_64d", "se_resnet_64d"),
    "cityscapes": ("r50", "r101"),
    "coco_stuff": ("r50", "r101"),
    "folder": ("r18", "r50", "r101"),
    "pascal_context": ("r50", "r101"),
    "scenes": ("encnet", "fcn", "pspnet", "deeplabv3"),
    "voc2012": ("coco-r50", "aug-r50", "aug-r101", "finetune-r101"),
}


def configs():
    for name, arguments in CONFIGS.items():
        for argument in arguments:
            module = importlib.import_module(f"configs.{name}")
            yield pytest.param(module.get_config(argument), id=f"{name}-{argument}")


def test_every_file_is_in_this_test():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__"}
    assert files == CONFIGS.keys()


@pytest.mark.parametrize("config", list(configs()))
def test_every_config_is_valid_and_builds_its_model(config):
    check_config(config)
    if config.data.name != "folder":
        info = dataset_info(config.data.name)
        assert config.data.train_split in info.splits
        assert config.evaluation.split in info.splits
        check_task(config, info)
    assert count_arrays(json.dumps(config.model.to_dict())) > 20


@functools.cache  # recipes of one network build it once
def count_arrays(model):
    config = default()
    config.model.update(json.loads(model))
    settings = model_settings(config)
    model = nnx.eval_shape(lambda: create_model(num_classes=3, **settings))
    return len(jax.tree.leaves(split_model(model)[1]))


@pytest.mark.parametrize("name", CONFIGS)
def test_unknown_argument_is_named_with_those_allowed(name):
    module = importlib.import_module(f"configs.{name}")
    with pytest.raises(ValueError, match=f"{name}.py:no-such: allowed are .*"):
        module.get_config("no-such")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6, "grad_accum_steps": 4}, "multiple of grad_accum_steps=4"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be above 0"),
        ({"total_steps": 0}, "total_steps=0: must be at least 1"),
        (
            {"learning_rate": 1e-5, "optimizer.min_learning_rate": 1e-4},
            "optimizer.min_learning_rate=0.0001: must be at most learning_rate=1e-05",
        ),
        ({"seed": 2**32}, r"seed=4294967296: must be below 2\^32"),
        ({"optimizer.schedule": "step"}, "'step': allowed are poly, cosine"),
        ({"optimizer.warmup_steps": 9}, "must be below total_steps=9"),
        ({"optimizer.momentum": 1.0}, "momentum=1.0"),
        ({"data.scale_range": (2.0, 1.0)}, "scale_range"),
        ({"data.rotation": 180}, "rotation=180.0: must be at least 0 and below 180"),
        ({"data.rotation": -10}, "data.rotation=-10.0: must be at least 0"),
        ({"data.class_crop_rate": 1.5}, "class_crop_rate=1.5: must be at least 0, at "),
        ({"data.class_crop_rate": -0.1}, "class_crop_rate=-0.1: must be at least 0"),
        ({"data.class_crop_rate": float("nan")}, "class_crop_rate=nan: must be at"),
        ({"early_stopping": None}, "early_stopping=None: must be a finite number"),
        ({"loss.lovasz_weight": float("inf")}, "lovasz_weight=inf: must be a finite"),
        ({"loss.class_weights": None}, r"class_weights=None: must be a value such as"),
        ({"model.remat": None}, r"model.remat=None: must be a value such as \(\)"),
        ({"model.se_stages": None}, r"se_stages=None: must be a value such as \(4,\)"),
        ({"data.flip": None}, "data.flip=None: must be a value such as True"),
        ({"model.weights": None}, "model.weights=None: must be a value such as ''"),
        ({"optimizer.ema_decay": None}, "ema_decay=None: must be a finite number"),
        ({"data.scale_range": ()}, r"scale_range=\(\): must be two numbers"),
        ({"data.scale_range": (1.0, 10**400)}, "scale_range=.*finite numbers"),
        ({"data.value_range": (0, 10**400)}, "value_range=.*: must be .low, high"),
        ({"data.scale_range": (1.0, float("inf"))}, "scale_range=.*finite numbers"),
        ({"evaluation.scales": ("nan",)}, r"scales=\('nan',\): must be finite numbers"),
        ({"evaluation.scales": (float("nan"),)}, r"scales=\(nan,\): must be above 0"),
        ({"model.stem_width": 48}, "stem_width=48: allowed are 32, 64"),
        (
            {"evaluation.crop_size": 32, "evaluation.stride": 40},
            "stride=40: windows of 32 pixels would leave gaps",
        ),
        ({"evaluation.protocol": "voc"}, "'voc': allowed are pytorch_encoding, mmseg"),
        ({"model.num_codes": -1}, "num_codes=-1"),
        ({"model.backbone": "resnet51"}, "resnet51': allowed are tiny, resnet18"),
        ({"model.dtype": "float16"}, "'float16': allowed are auto"),
        ({"evaluation.flip": True}, "needs evaluation.scales"),
        ({"evaluation.scales": (0.0,)}, "must be above 0"),
        ({"mesh.data": 0}, "mesh.data=0"),
        ({"loss.class_weights": (1.0, -1.0)}, r"class_weights=\(1.0, -1.0\): weight 1"),
        ({"loss.class_weights": (1.0, float("nan"))}, "weight 1 is nan: must be fin"),
        ({"loss.class_weights": (0.0, 0.0)}, "all weights are 0"),
        ({"loss.class_weights": (1, "a")}, "weight 1 is 'a': must be a number"),
        ({"loss.class_weights": ("1", "2")}, "weight 0 is '1': must be a number"),
        (
            {"loss.class_balance": "mean"},
            "'mean': allowed are '', median_frequency, log",
        ),
        (
            {"loss.class_balance": "log", "loss.class_weights": (1.0, 2.0)},
            "loss.class_balance='log': .* with loss.class_weights it must be ''",
        ),
    ],
)
def test_value_out_of_range_is_named_with_what_is_allowed(changes, message):
    config = default()
    config.total_steps = 9
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        check_config(config)


def test_stored_config_is_read_back(tmp_path):
    config = default()
    config.total_steps = 7
    config.model.width = 24
    path = tmp_path / "config.json"
    save_config(config, path)
    assert load_config(path).to_json() == config.to_json()
    with pytest.raises(UserError, match="missing"):
        load_config(tmp_path / "other.json")
    with pytest.raises(UserError, match=f"{tmp_path}: a folder; give its .*{path}"):
        load_config(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{}", "config.json: not the configuration of a run"),
        (b"{", "config.json: not JSON"),
        (b"[]", "config.json: not the configuration of a run"),
        (b"null", "config.json: not the configuration of a run"),
        (
            b'{"model": {}, "data": {}}',
            "not the configuration of a run: evaluation is none",
        ),
        (b'{"data": {"crop_size": "32"}}', "not the configuration of a run"),
        (
            b'{"model": {"hue": 1}, "data": {}, "loss": {}, "optimizer": {}, '
            b'"evaluation": {}, "mesh": {}}',
            "model.hue: no such key of the configuration in version",
        ),
    ],
)
def test_damaged_config_is_one_line(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load_config(path)
    assert "\n" not in str(raised.value)


def test_workdir_is_named_after_file_and_argument():
    assert default_workdir("configs/scenes.py") == Path("runs/scenes")
    assert default_workdir("a/camvid.py:cpu") == Path("runs/camvid-cpu")
    assert default_workdir("scenes") == Path("runs/scenes")
    assert default_workdir("camvid:cpu") == Path("runs/camvid-cpu")


def test_recipes_are_found_by_name():
    assert recipes().keys() == CONFIGS.keys()
    for name in CONFIGS:
        assert find_config(name) == str(ROOT / f"configs/{name}.py")
    assert find_config("camvid:cpu") == str(ROOT / "configs/camvid.py:cpu")
    assert find_config("configs/camvid.py:cpu") == "configs/camvid.py:cpu"


def test_files_are_python_and_hide_no_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("camvid").write_text("")
    Path("scenes").mkdir()
    assert find_config("camvid:cpu") == str(ROOT / "configs/camvid.py:cpu")
    assert find_config("scenes:fcn") == str(ROOT / "configs/scenes.py:fcn")
    Path("camvid.py").write_text("")
    assert find_config("camvid.py:cpu") == "camvid.py:cpu"
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert find_config("~/camvid.py:cpu") == f"{Path.cwd()}/camvid.py:cpu"
    Path("config.json").write_text("{}")
    with pytest.raises(UserError, match="^config.json: a configuration is a Python"):
        find_config("config.json")


def test_recipes_of_a_wheel_are_inside_the_package(tmp_path, monkeypatch):
    for folder in ("site/configs", "site/encnet_jax/configs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "site/configs/other.py").write_text("")  # another package's
    for name in ("__init__", "mine"):
        (tmp_path / f"site/encnet_jax/configs/{name}.py").write_text("")
    file = tmp_path / "site/encnet_jax/config.py"
    monkeypatch.setattr(config_module, "__file__", str(file))
    assert recipes() == {"mine": file.parent / "configs/mine.py"}


@pytest.mark.parametrize("name", ["camvd", "configs/camvd.py:cpu", "", "__init__", "."])
def test_unknown_recipe_is_an_error_that_lists_them(name):
    with pytest.raises(UserError, match="neither .*; recipes are ade20k, camvid, cif"):
        find_config(name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config=camvd", "--config.batch_size=2"],
        ["evaluate", "--config", "camvd:cpu"],
        ["data", "camvd", "--limit=1"],
    ],
)
def test_unknown_recipe_on_the_command_line_is_one_line(arguments):
    result = run("-m", "encnet_jax", *arguments)
    assert result.returncode == 2 and not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: flag --config=camvd")
    assert line.endswith(f"recipes are {', '.join(sorted(CONFIGS))}")


def test_an_unknown_variant_is_one_line_without_the_type_of_the_error():
    result = run("train.py", "--config=configs/scenes.py:bogus")
    assert result.returncode == 2
    assert errors(result) == [
        "error: scenes.py:bogus: allowed are encnet, fcn, pspnet, deeplabv3"
    ]


def parsed(monkeypatch, **overrides):
    """Returns the configuration of a command line with these keys."""
    line = ["train.py", "--config=camvid"]
    line += [f"--config.{key}={value}" for key, value in overrides.items()]
    own = SimpleNamespace(FLAGS=flags.FlagValues())
    define = functools.partial(
        config_flags.DEFINE_config_file, flag_values=own.FLAGS, sys_argv=line
    )
    monkeypatch.setattr(cli, "flags", own)
    monkeypatch.setattr(config_flags, "DEFINE_config_file", define)
    cli.define_config()
    own.FLAGS(line)
    return dict(leaves(own.FLAGS.config))


LISTS = [key for key, value in leaves(default()) if isinstance(value, tuple)]


@pytest.mark.parametrize("empty", ["", "None", "()"])
@pytest.mark.parametrize("key", LISTS)
def test_flag_empties_a_list(monkeypatch, key, empty):
    assert len(LISTS) >= 6
    assert parsed(monkeypatch, **{key: empty})[key] == ()


@pytest.mark.parametrize("given", ["0.5,1", "(0.5, 1)", "[0.5,1.0]"])
def test_flag_lists_values(monkeypatch, given):
    config = parsed(monkeypatch, **{"evaluation.scales": given, "model.remat": 3})
    assert config["evaluation.scales"] == (0.5, 1)
    assert config["model.remat"] == (3,)
