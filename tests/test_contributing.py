"""CONTRIBUTING.md followed to the letter, on a copy of the sources."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.commands import ROOT, environment
from tests.test_import_order import ORDER

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# A block follows the path of its file: "... `path/of/file.py`:".
BLOCKS = re.findall(r"`([\w./]+)`:\n\n```(\w+)\n(.*?)```", TEXT, re.DOTALL)
NEW_TESTS = [path for path, _, _ in BLOCKS if path.startswith("tests/")]


def apply_diff(text, diff):
    """Replaces, hunk by hunk, what a diff shows of the old text by the new."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"not found exactly once:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The sources, with all files and entries of the how-tos added."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("encnet_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    for file in ("conftest.py", "commands.py", "test_import_order.py"):
        (root / "tests").mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests" / file, root / "tests")
    for path, language, block in BLOCKS:
        file = root / path
        if language == "diff":
            file.write_text(apply_diff(file.read_text(), block))
        else:
            assert not file.exists()
            file.parent.mkdir(exist_ok=True)
            file.write_text(block)
    return root


def run_in(root, *arguments):
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=root,
        env=environment() | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_three_guides_with_a_test_each():
    assert len(NEW_TESTS) == 3
    assert len(BLOCKS) == 11
    assert TEXT.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if "pets" in path else pytest.mark.slow)
        for path in [*NEW_TESTS, "tests/test_import_order.py"]
    ],
)
def test_example_passes_its_test(checkout, path):
    run_in(checkout, "pytest", "-q", "-p", "no:cacheprovider", path)


def test_examples_pass_the_linter(checkout):
    files = sorted({path for path, _, _ in BLOCKS if path.endswith(".py")})
    run_in(checkout, "ruff", "check", "--no-cache", *files)
    run_in(checkout, "ruff", "format", "--no-cache", "--check", *files)


def test_files_named_in_the_reading_lists_exist():
    section = TEXT.partition("## Reading the code")[2].partition("\n## ")[0]
    lists = re.split(r"^### ", section, flags=re.MULTILINE)[1:]
    assert len(lists) == 3
    for entry in lists:
        files = re.findall(r"^\d+\. `([\w./]+\.py)`", entry, re.MULTILINE)
        assert 1 <= len(files) <= 8
        assert all((ROOT / file).is_file() for file in files)


def test_every_package_is_on_the_map():
    rows = re.findall(r"^\| `(\w+)/` \|", TEXT, re.MULTILINE)
    assert rows == [name for name in ORDER if (ROOT / "encnet_jax" / name).is_dir()]
