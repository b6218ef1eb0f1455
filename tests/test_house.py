"""What holds for every file of the package, read off the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import encnet_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "encnet_jax"
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def importers(*packages):
    """Returns the files that import one of the packages, at any depth."""
    found = set()
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            if {name.split(".")[0] for name in names} & {*packages}:
                found.add(file)
    return found


def length_without_docstring(function):
    docstring = function.body[0] if ast.get_docstring(function, clean=False) else None
    lines = function.end_lineno - function.lineno + 1
    return lines - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)


def test_files_are_short():
    lengths = {file: len((PACKAGE / file).read_text().splitlines()) for file in TREES}
    assert not {file: n for file, n in lengths.items() if n > 330}
    assert len([file for file in TREES if "/" not in file]) <= 12


def test_functions_are_short():
    lengths = {
        f"{file}:{node.name}": length_without_docstring(node)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, FUNCTION)
    }
    assert not {name: n for name, n in lengths.items() if n > 60}


def test_heavy_packages_are_imported_in_one_place():
    tensorflow = importers("tensorflow", "tensorflow_datasets")
    assert tensorflow and all(file.startswith("data/") for file in tensorflow)
    assert importers("orbax") == {"run/checkpoint.py"}
    assert not importers("torch", "torchvision")


def test_no_file_for_leftovers():
    names = {Path(file).stem for file in TREES}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_files_of_tests_have_names_of_their_own():
    """Where a folder of tests is no package, pytest knows a file by its name alone."""
    paths = (ROOT / "tests").rglob("test_*.py")
    names = [p.name for p in paths if not (p.parent / "__init__.py").exists()]
    assert not {name for name in names if names.count(name) > 1}


def test_public_definitions_of_the_core_have_docstrings():
    core = ("ops/", "models/", "losses.py", "metrics.py")
    bare = []
    for file, tree in TREES.items():
        if file.startswith(core):
            classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
            for node in [*tree.body, *(item for c in classes for item in c.body)]:
                if isinstance(node, (*FUNCTION, ast.ClassDef)):
                    if node.name[0] != "_" and not ast.get_docstring(node):
                        bare.append(f"{file}:{node.name}")
    assert not bare


def test_version_has_one_source():
    version = encnet_jax.__version__
    project = (ROOT / "pyproject.toml").read_text()
    assert 'version = { attr = "encnet_jax.__version__" }' in project
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    latest = re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert latest and latest[1] == version


def test_import_is_lazy():
    program = "import sys, encnet_jax; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    modules = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "encnet_jax" in modules.split()
    assert not {"jax", "numpy", "tensorflow", "ml_collections"} & {*modules.split()}
    for name in encnet_jax.__all__:
        assert getattr(encnet_jax, name)
