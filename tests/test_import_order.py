"""A package imports only from those below it; read off the imports themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "encnet_jax"
# From the bottom up: a file imports from its own entry and from those before it.
ORDER = (
    "errors",
    "files",
    "migrations",
    "ops",
    "config",
    "config_checks",
    "data",
    "models",
    "losses",
    "metrics",
    "optimizer",
    "visualize",
    "run",
    "inference",
    "report",
    "evaluate",
    "convert",
    "train",
    "explain",
    "predict",
    "export",
    "app",
    "compare",
    "fit_arrays",
    "cli",
    "commands",
)
FILES = sorted(ROOT.rglob("*.py"))


def entry_of(module: str) -> str:
    """Returns the entry of `ORDER` that a dotted module name belongs to."""
    return module.split(".")[1]


def imported_modules(tree: ast.AST) -> set[str]:
    """Returns the modules of this package that a file imports, at any depth."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            module = node.module or ""
            found |= (
                {f"{module}.{alias.name}" for alias in node.names}
                if module == "encnet_jax"
                else {module}
            )
    return {name for name in found if name.startswith("encnet_jax.")}


def test_every_module_is_in_the_order():
    entries = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert entries - {"__init__", "__main__"} == set(ORDER)


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: str(path.relative_to(ROOT).with_suffix(""))
)
def test_imports_run_one_way(path):
    entry = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if entry == "__init__":
        return  # imports lazily, and for type checkers
    # A `__main__.py` runs a command.
    own = ORDER.index("commands" if path.name == "__main__.py" else entry)
    for module in imported_modules(ast.parse(path.read_text())):
        assert ORDER.index(entry_of(module)) <= own, f"{path} imports {module}"
