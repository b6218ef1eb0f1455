"""Networks from outside of the package, by the variable `ENCNET_PLUGINS`."""

import json
import os
import subprocess
import sys

import pytest

from encnet_jax.errors import UserError
from encnet_jax.models import create_model
from encnet_jax.models.registry import BACKBONES
from encnet_jax.run.plugins import import_plugins
from tests.commands import ROOT, SMALL, command, environment, errors

# The least that a backbone has: no settings, no checks.
MODULE = """
from flax import nnx
from encnet_jax.models.layers import ConvBN
from encnet_jax.models.registry import BACKBONES

class Mine(nnx.Module):
    features = (4, 4, 4, 4)

    def __init__(self, *, rngs):
        self.first = ConvBN(3, 4, 3, stride=8, rngs=rngs)
        self.second = ConvBN(4, 4, 3, rngs=rngs)

    def __call__(self, images):
        first = self.first(images)
        second = self.second(first)
        return [first, second, second, second]

BACKBONES["mine"] = Mine
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    monkeypatch.setenv("ENCNET_PLUGINS", "my_networks")
    yield
    BACKBONES.pop("mine", None)


def test_module_of_the_current_folder_adds_a_backbone(module):
    with pytest.raises(UserError, match="backbone='mine': allowed are tiny.*_PLUGINS"):
        create_model("fcn", num_classes=2, backbone="mine")
    import_plugins()
    model = create_model("fcn", num_classes=2, backbone="mine", head_channels=4)
    assert isinstance(model.backbone, BACKBONES["mine"])


@pytest.mark.parametrize(
    "names, message",
    [
        ("my_network", "no module 'my_network'"),
        ("my_networks,os.nothing", "no module 'os.nothing'"),
        (".relative", "must be names of modules"),
    ],
)
def test_missing_module_is_named(module, monkeypatch, names, message):
    monkeypatch.setenv("ENCNET_PLUGINS", names)
    with pytest.raises(UserError, match=f"^ENCNET_PLUGINS={names}: {message}"):
        import_plugins()


def test_what_a_module_itself_lacks_is_its_own_error(module, tmp_path, monkeypatch):
    (tmp_path / "my_faulty_networks.py").write_text("import no_such_package")
    monkeypatch.setenv("ENCNET_PLUGINS", "my_faulty_networks")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        import_plugins()


@pytest.mark.slow
def test_own_backbone_is_trained_and_predicts(camvid, tmp_path):
    (tmp_path / "my_networks.py").write_text(MODULE)
    workdir = tmp_path / "run"

    def run(*arguments, plugins="my_networks"):
        path = os.pathsep.join([str(ROOT), str(tmp_path)])
        more = {"PYTHONPATH": path, "ENCNET_PLUGINS": plugins}
        return subprocess.run(
            command(*arguments),
            cwd=ROOT,
            env=environment() | more,
            capture_output=True,
            text=True,
        )

    trained = run(
        "train.py",
        "--config=camvid:cpu",
        f"--config.data.data_dir={camvid}",
        f"--workdir={workdir}",
        *SMALL,
        "--config.model.name=fcn",
        "--config.model.backbone=mine",
        "--config.model.decoder_stride=8",
        "--noconfig.model.pad_to_stride",  # which needs the stride of the backbone
        "--config.total_steps=1",
    )
    assert trained.returncode == 0, trained.stderr
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["backbone"] == "mine"
    image = next((camvid / "test").iterdir())
    predict = ["predict.py", f"--workdir={workdir}", f"--output={tmp_path}/out", image]
    result = run(*predict)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / f"{image.stem}.png").exists()
    assert "model.backbone='mine'" in errors(run(*predict, plugins=""))[0]
