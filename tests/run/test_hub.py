"""Model folders on the hub, by the real client against a local one."""

import functools
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from encnet_jax import Segmenter, UserError, create_model
from encnet_jax.commands import evaluate, export, predict
from encnet_jax.data.dataset_info import DatasetInfo, voc_colormap
from encnet_jax.run import hub as client
from encnet_jax.run.model_folder import find_model_folder
from encnet_jax.train.initialization import load_initial_weights
from tests.commands import ROOT
from tests.fake_hub import serve
from tests.parsed_flags import run_command
from tests.random_module import random_module
from tests.small_workdir import TINY, write_workdir

NAMES = ("road", "car", "sky")
INFO = DatasetInfo("mine", NAMES, voc_colormap(3), {})
SETTINGS = dict(name="encnet", **TINY)
FILES = {"README.md", "config.json", "model.safetensors"}


def set_endpoint(monkeypatch, url):
    """Sets what `HF_ENDPOINT` sets, but only when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    with serve() as served:
        set_endpoint(monkeypatch, served.url)
        yield served


@pytest.fixture(scope="module")
def segmenter():
    model = random_module(create_model, num_classes=3, **SETTINGS)
    return Segmenter(model, INFO, settings=SETTINGS)


def bias_of(segmenter):
    return np.asarray(segmenter._trained[0]["head"]["classifier"]["conv"]["bias"])


def other_than(segmenter, value):
    """Returns a segmenter with another bias."""
    model = random_module(create_model, num_classes=3, **SETTINGS)
    bias = model.head.classifier.conv.bias
    bias.set_value(np.full(3, value, np.float32))
    return Segmenter(model, INFO, settings=SETTINGS)


def test_pushed_model_is_read_back(hub, segmenter):
    url = segmenter.push_to_hub("me/model", license="mit", commit_message="First")
    assert url.endswith("/me/model") and hub.messages[-1] == "First"
    sha = hub.repositories["me/model"]["main"]
    assert hub.commits[sha].keys() - {".gitattributes"} == FILES
    card = hub.commits[sha]["README.md"].decode()
    assert 'Segmenter.from_pretrained("me/model")\n' in card
    assert "--workdir=hf://me/model " in card and 'license: "mit"' in card
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    hub.commits[sha]["pytorch_model.bin"] = b"cos\nsystem\n"
    found = Segmenter.from_pretrained("me/model")
    np.testing.assert_array_equal(
        found(image).probabilities, segmenter(image).probabilities
    )
    files = {path.rsplit("/", 1)[1] for _, path in hub.requests if "/resolve/" in path}
    assert files == {"config.json", "model.safetensors"}  # and no other


def test_revisions_are_read_and_written(hub, segmenter):
    segmenter.push_to_hub("me/model")
    first = hub.repositories["me/model"]["main"]
    other_than(segmenter, 2).push_to_hub("me/model", revision="try")
    other_than(segmenter, 3).push_to_hub("me/model")
    for revision, value in (("@try", 2), ("@main", 3), ("", 3), (f"@{first}", 0)):
        found = Segmenter.from_pretrained(f"hf://me/model{revision}")
        np.testing.assert_array_equal(bias_of(found), value)
    tried = hub.commits[hub.repositories["me/model"]["try"]]["README.md"].decode()
    assert 'Segmenter.from_pretrained("hf://me/model@try")\n' in tried
    assert "--workdir=hf://me/model@try " in tried
    np.testing.assert_array_equal(bias_of(Segmenter.from_pretrained("me/model@try")), 2)


def test_training_starts_from_a_model_on_the_hub(hub, segmenter):
    other_than(segmenter, 2).push_to_hub("me/model", revision="try")
    model = create_model(num_classes=3, **SETTINGS)
    text = load_initial_weights(model, "hf://me/model@try", NAMES)
    np.testing.assert_array_equal(model.head.classifier.conv.bias[...], 2)
    assert "arrays of step 0" in text


def test_commands_take_an_address(hub, segmenter, tmp_path, monkeypatch):
    segmenter.push_to_hub("me/model")
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
    call = functools.partial(run_command, monkeypatch)
    address = {"workdir": "hf://me/model@main"}
    assert call(predict, tmp_path / "a.png", **address, output=tmp_path / "out") == 0
    assert (tmp_path / "out" / "a.png").is_file()
    call(export, **address, output=tmp_path / "model", format="pretrained")
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES
    monkeypatch.setattr(evaluate.flags, "FLAGS", SimpleNamespace(**address))
    with pytest.raises(UserError, match="--workdir=hf://me/model@main: scores are"):
        evaluate.main([])


@pytest.mark.slow
def test_code_of_the_documentation_runs(hub, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "sharing.md").read_text()
    blocks = re.findall("```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    write_workdir(tmp_path / "runs" / "camvid", **TINY)
    scope = {"info": INFO}
    for block in blocks:
        exec(block.replace('"resnet18"', '"tiny"'), scope)
    assert len(blocks) == 3 and "me/camvid-encnet" in hub.repositories
    assert {path.name for path in (tmp_path / "my-fcn").iterdir()} == FILES


@pytest.mark.slow
def test_private_is_for_new_repositories(hub, segmenter):
    segmenter.push_to_hub("me/secret", private=True)
    assert "me/secret" in hub.private
    segmenter.push_to_hub("me/secret", private=True)
    segmenter.push_to_hub("me/open")
    before = dict(hub.repositories["me/open"])
    with pytest.raises(UserError, match="me/open: is public"):
        segmenter.push_to_hub("me/open", private=True)
    assert hub.repositories["me/open"] == before


@pytest.mark.parametrize("name", ["model", "a/b/c", "hf://me/model", "me/model@main"])
def test_repository_to_push_to_is_owner_and_name(segmenter, name):
    with pytest.raises(UserError, match="repo_id=.*must be OWNER/REPO"):
        segmenter.push_to_hub(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://me/none", "hf://me/none: cannot be downloaded: no such repository"),
        ("me/none", "me/none: .*no such repository.*; nor is it a folder here"),
        ("hf://me/model@none", "no such revision"),
        ("hf://me/empty", "config.json: missing"),
    ],
)
def test_what_the_hub_lacks_is_one_line(hub, source, message):
    hub.commit("me/model", "main", {"config.json": b"{}"})
    hub.commit("me/empty", "main", {"README.md": b""})
    with pytest.raises(UserError, match=message) as caught:
        Segmenter.from_pretrained(source)
    assert "\n" not in str(caught.value)


def test_file_of_the_hub_is_downloaded(hub):
    hub.commit("me/model", "main", {"sub/a.pth": b"weights"})
    path = Path(client.download_file("hf://me/model/sub/a.pth"))
    assert path.read_bytes() == b"weights"
    with pytest.raises(UserError, match="hf://me/model/b.pth: .*no such file"):
        client.download_file("hf://me/model/b.pth")


def test_file_of_a_revision_is_downloaded(hub):
    first = hub.commit("me/model", "main", {"a.pth": b"old"})
    hub.commit("me/model", "main", {"a.pth": b"new"})
    hub.commit("me/model", "refs/pr/2", {"sub/a.safetensors": b"theirs"})
    for address, contents in (
        (f"hf://me/model@{first}/a.pth", b"old"),
        ("hf://me/model@main/a.pth", b"new"),
        ("hf://me/model@refs/pr/2/sub/a.safetensors", b"theirs"),
    ):
        assert Path(client.download_file(address)).read_bytes() == contents
    with pytest.raises(UserError, match="@none/a.pth: .*no such revision"):
        client.download_file("hf://me/model@none/a.pth")
    with pytest.raises(UserError, match=r"must be hf://OWNER/REPO\[@REVISION\]/FILE"):
        client.download_file("hf://me/model@main")


def test_training_starts_from_a_file_of_a_revision(hub):
    hub.commit("me/model", "try", {"a.pth": b"no weights"})
    model = create_model(num_classes=3, **SETTINGS)
    with pytest.raises(UserError, match="a.pth: is not a torch file"):  # it was read
        load_initial_weights(model, "hf://me/model@try/a.pth", NAMES)


def test_without_a_connection_the_cache_serves(hub, segmenter, monkeypatch):
    segmenter.push_to_hub("me/model")
    folder = find_model_folder("hf://me/model")
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert find_model_folder("hf://me/model") == folder
    with pytest.raises(UserError, match="me/other: cannot be downloaded"):
        find_model_folder("hf://me/other")
    with pytest.raises(UserError, match="me/model: cannot be uploaded"):
        segmenter.push_to_hub("me/model")


def test_a_folder_comes_before_the_hub(hub, segmenter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    segmenter.save_pretrained("me/model")
    assert find_model_folder("me/model").resolve() == tmp_path / "me" / "model"
    assert not hub.requests


@pytest.mark.parametrize(
    "action",
    [
        lambda s: Segmenter.from_pretrained("me/model"),
        lambda s: Segmenter.from_pretrained("hf://me/model@main"),
        lambda s: s.push_to_hub("me/model"),
        lambda s: client.download_file("hf://me/model/a.pth"),
    ],
)
def test_missing_package_is_named_with_the_extra(segmenter, monkeypatch, action):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    missing = r"me/model.* needs huggingface_hub, which is not installed.*\[we"
    with pytest.raises(UserError, match=missing):
        action(segmenter)


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("a/b", ("a/b", None)),
        ("hf://a/b@v1.0", ("a/b", "v1.0")),
        ("hf://a-1/b_2.c@refs/pr/3", ("a-1/b_2.c", "refs/pr/3")),
        ("hf://a/b/c.pth", None),
        ("hf://a/b@try/c.pth", None),
        ("hf://a/b@refs/pr/3/c.safetensors", None),
        ("hf://a/b@v1/c.PTH.tar", None),
        ("hf://a/b@v1.pt", ("a/b", "v1.pt")),
        ("a/b@", None),
        ("a", None),
        ("../b", None),
        ("a/b\n", None),
        ("~/b", None),
    ],
)
def test_addresses(address, parsed):
    assert client.parse_repository(address) == parsed
