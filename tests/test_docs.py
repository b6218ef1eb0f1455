"""The Python blocks of README.md and docs/ run, page by page, on small networks.

A block that cannot run stands behind `<!-- not run: reason -->`.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from torch_networks import small_weights

from encnet_jax import fit_arrays
from encnet_jax.commands import VERBS
from encnet_jax.config import default
from encnet_jax.export.run import export_workdir
from encnet_jax.models import create_model, registry
from tests.commands import ROOT, SMALL, environment
from tests.convert.test_load import ADE, write_pth
from tests.random_module import random_module

DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "quickstart.ipynb"
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]*?) -->\n+)?"
    r"```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PAGES = ["README.md"] + [
    path.relative_to(ROOT).as_posix()
    for path in sorted(DOCS.rglob("*.md"))
    if "_build" not in path.parts
]
_SLOW = ("docs/export.md", "docs/howto/look-inside.md", "docs/howto/multi-scale.md")
LANGUAGES = {"python", "sh", "text", "json", "diff", "bibtex", ""}
# The networks of the examples, small enough to compile in seconds, and such that the
# weights in the `.pth` files fit.
SMALL_MODEL = dict(
    backbone="tiny", stem="deep", stem_width=64, width=8, head_channels=64
)


class Block(NamedTuple):
    """A block of code in a page."""

    reason: str | None
    language: str
    code: str


def blocks(page):
    return [
        Block(*found.groups()) for found in FENCE.finditer((ROOT / page).read_text())
    ]


def runnable(page):
    return [b for b in blocks(page) if b.language == "python" and not b.reason]


def small_model(name, **settings):
    """Returns a small network in place of that of an example."""
    return random_module(create_model, name, **settings | SMALL_MODEL)


def two_steps(images, labels):
    """Returns the configuration of `fit` for two steps of a small network."""
    config = default()
    config.total_steps = config.eval_every = config.checkpoint_every = 2
    config.batch_size, config.mesh.data = 2, 1
    config.data.base_size = config.data.crop_size = images.shape[1]
    config.optimizer.warmup_steps = 0
    config.model.update(SMALL_MODEL | dict(num_codes=4, width=4, stem="plain"))
    return config


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with all files that the examples read."""
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    (root / "photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(root / name)
    with tarfile.open(ROOT / "tests/fixtures/workdir_encnet.tar.xz") as archive:
        archive.extractall(root / "runs/scenes", filter="data")
    for name in ("camvid", "leaves"):
        shutil.copytree(root / "runs/scenes", root / "runs" / name)
    for name in ("encnet.pth", "resnet50s.pth"):
        write_pth(root / name, small_weights(ADE))
    return root


@pytest.fixture
def names(files, tmp_path, monkeypatch):
    """Makes a copy of the files the current folder; returns what examples refer to."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "create_model", small_model)
    monkeypatch.setattr("encnet_jax.models.create_model", small_model)
    monkeypatch.setattr(fit_arrays, "small_config", two_steps)
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (4, 33, 33, 3), np.uint8),
        "labels": rng.integers(0, 2, (4, 33, 33), np.uint8),
        "names": ("ground", "leaf"),
        "x": jnp.zeros((1, 33, 33, 3)),
    }


def execute(block, page, names):
    exec(compile(block.code, page, "exec"), names)  # noqa: S102


@pytest.mark.filterwarnings(
    "ignore:'.value' access is now deprecated:DeprecationWarning:jax2onnx"
)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in _SLOW else [])
        for page in PAGES
        if runnable(page)
    ],
)
def test_every_python_block_runs(page, names, monkeypatch):
    if page == "docs/export.md":
        for file_format in ("stablehlo", "onnx"):
            export_workdir(Path("runs/scenes"), Path(file_format), file_format)
            shutil.copy(f"{file_format}/model.{file_format}", ".")
    if page == "docs/sharing.md":  # saves the settings too, as written
        monkeypatch.setattr(registry, "create_model", create_model)
    for block in runnable(page):
        execute(block, page, names)


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_no_python_escapes_the_tests(page):
    text = (ROOT / page).read_text()
    found = blocks(page)
    assert {block.language for block in found} <= LANGUAGES
    assert all(block.reason is None or len(block.reason) > 9 for block in found)
    marks = re.findall("^<!-- not run", text, re.MULTILINE)
    assert len(marks) == sum(block.reason is not None for block in found)
    # Neither other fences nor indented blocks hold Python.
    for block in found:
        if block.language in ("python", "diff"):
            text = text.replace(block.code, "")
    assert not re.search(r"^ *(import \w+$|from [\w.]+ import |>>> )", text, re.M)


def test_commands_of_the_pages_are_verbs_of_encnet():
    for page in PAGES:
        for block in blocks(page):
            if block.language == "sh":
                verbs = re.findall(r"^encnet (\S+)", block.code, re.M)
                assert {*verbs} <= {*VERBS}, page


def test_every_page_is_in_the_site():
    listed = (DOCS / "index.md").read_text().splitlines()
    pages = {page.removeprefix("docs/").removesuffix(".md") for page in PAGES[1:]}
    assert pages - {"index"} <= {*listed}


@pytest.mark.slow
def test_tutorial_on_own_data_runs_with_its_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page, names = "docs/tutorials/own-data.md", {}
    for block in blocks(page):
        if block.language == "python":
            execute(block, page, names)
        elif block.language == "sh":
            program, *arguments = shlex.split(block.code.replace("\\\n", " "))
            assert program == "encnet"
            if arguments[0] == "train":
                arguments += ["--config.model.weights=", *SMALL]
            command = [sys.executable, "-m", "encnet_jax", *arguments]
            subprocess.run(command, env=environment(), check=True, timeout=300)
    assert (tmp_path / "checked/train.png").exists()
    assert (tmp_path / "runs/leaves/evaluation/val.json").exists()
    assert (tmp_path / "overlay.png").exists()


def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_losses_of_low_res_logits_upsample_them_as_the_model_does():
    codes = [b.code for page in [*PAGES, "CONTRIBUTING.md"] for b in blocks(page)]
    codes += ["".join(cell["source"]) for cell in cells()]
    losses = {"segmentation_loss", "pixel_cross_entropy", "lovasz_softmax"}
    found = []
    for code in [code for code in codes if "forward_low_res(" in code]:
        for call in ast.walk(ast.parse(code)):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in losses:
                found += [{k.arg: ast.unparse(k.value) for k in call.keywords}]
    assert found
    for arguments in found:
        assert arguments.get("align_corners") == "model.align_corners"


def test_notebook_is_stored_as_executed_and_small():
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 6
    assert NOTEBOOK.stat().st_size < 700_000
    text = NOTEBOOK.read_text()
    assert (
        "/tmp" not in text
        and str(ROOT) not in text
        and os.path.expanduser("~") not in text
    )


@pytest.mark.slow
def test_notebook_runs_from_the_first_cell_to_the_last(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    from nbclient import NotebookClient

    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("QUICKSTART_STEPS", "4")
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, resources=resources).execute()
    (last,) = notebook.cells[-2].outputs
    assert last.text.endswith("100.0% of the labels equal\n")
