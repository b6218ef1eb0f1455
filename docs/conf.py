"""Sphinx: `make docs` builds the site from these pages and the docstrings.

The pages are plain Markdown, so that they read as well on a code host. What the site
needs beyond that happens here: links to files outside docs/, CHANGELOG.md and
CONTRIBUTING.md as pages, and signatures and attributes with the shapes of the source.
"""

import ast
import inspect
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import encnet_jax  # noqa: E402

project = "encnet_jax"
author = "The encnet_jax authors"
project_copyright = author
release = version = encnet_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
# `names` in docstrings are links where they name something documented here.
default_role = "py:obj"
highlight_language = "none"  # most blocks are commands
smartquotes_action = "D"  # dashes only: quotes are often code
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks are stored with their outputs
nb_output_stderr = "remove"  # progress of the training

autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 72
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"encnet_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0f6b5c",
        "color-brand-content": "#0f6b5c",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5fd0b8",
        "color-brand-content": "#5fd0b8",
    },
}

# Pages whose text is that of a file in the root; in docs/ they only point there.
ROOT_PAGES = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
_LINK = re.compile(r"(!?\[([^\]]*)\])\((?!https?:|#|mailto:)([^)\s#]*)(#[^)\s]*)?\)")


def read_page(app: Sphinx, page: str, content: list[str]) -> None:
    """Puts files of the root in place of their pages, and adapts links."""
    if not app.env.doc2path(page).suffix == ".md":
        return
    folder = (DOCS / page).parent
    if page in ROOT_PAGES:
        content[0] = (ROOT / ROOT_PAGES[page]).read_text()
        folder = ROOT
    pages = {ROOT / file: DOCS / f"{page}.md" for page, file in ROOT_PAGES.items()}

    def adapt(link: re.Match[str]) -> str:
        label, text, file, anchor = link.groups()
        target = (folder / file).resolve()
        target = pages.get(target, target)
        if not target.exists():
            return link[0]  # Sphinx reports it
        if target.is_dir() or not target.is_relative_to(DOCS):
            return text  # not part of the site
        path = os.path.relpath(target, (DOCS / page).parent)
        return f"{label}({path}{anchor or ''})"

    content[0] = _LINK.sub(adapt, content[0])


def definition(thing: Any) -> ast.AST | None:
    """Returns the definition of a function or class as it stands in the source."""
    try:
        source = inspect.getsource(inspect.unwrap(thing))
        return ast.parse(textwrap.dedent(source)).body[0]
    except (OSError, TypeError, SyntaxError):
        return None


def source_signature(
    app: Sphinx, kind: str, name: str, thing: Any, options: Any, *signature: str
) -> tuple[str, str | None] | None:
    """Returns the signature with the annotations, and so the shapes, of the source."""
    node = definition(thing)
    if isinstance(node, ast.ClassDef):
        methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
        node = next((item for item in methods if item.name == "__init__"), None)
        if node is None:  # of tuples and dataclasses the attributes say the same
            return None if kind == "exception" else ("", None)
    if not isinstance(node, ast.FunctionDef):
        return None
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if kind in ("class", "method") and "staticmethod" not in decorators:
        node.args.args = node.args.args[1:]
    for group in (node.args.defaults, node.args.kw_defaults):
        for index, value in enumerate(group):
            if isinstance(value, ast.Name) and value.id.startswith("_"):
                known = vars(sys.modules[thing.__module__])[value.id]
                group[index] = ast.Constant(known)
    returns = node.returns
    if kind == "class" or returns is None:
        return f"({ast.unparse(node.args)})", None
    if isinstance(returns, ast.Constant) and isinstance(returns.value, str):
        return f"({ast.unparse(node.args)})", returns.value
    return f"({ast.unparse(node.args)})", ast.unparse(returns)


def adapt_docstring(
    app: Sphinx, kind: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Translates a docstring, whose prose is plain text, to reStructuredText."""
    types = attribute_types(thing) if kind == "class" else {}
    result: list[str] = []
    section = ""
    literal = False
    for line in lines:
        indented = line[:1].isspace()
        if line and not indented:
            literal = False
            section = line if re.fullmatch(r"[A-Z]\w+:", line) else ""
        starts_block = indented and not section and result and not result[-1]
        if starts_block and not literal and not line.lstrip().startswith("- "):
            result += ["::", ""]  # a formula or an example
            literal = True
        attribute = re.match(r"    (\w+): ", line)
        if section == "Attributes:" and attribute and attribute[1] in types:
            name = attribute[1]
            indent = " " * 8  # as of the lines that follow
            result += ["", f".. attribute:: {name}"]
            result += [f"{indent}:type: {types[name]}", ""]
            line = indent + line[attribute.end() :]
        if line != "Attributes:":
            result.append(line if literal else escape(line))
    lines[:] = result


def attribute_types(thing: Any) -> dict[str, str]:
    """Returns the annotations in the body of a class."""
    return {
        ast.unparse(item.target): ast.unparse(item.annotation)
        for item in getattr(definition(thing), "body", ())
        if isinstance(item, ast.AnnAssign)
    }


def escape(line: str) -> str:
    """Makes `names` links where they are in the reference, and keeps |x| a norm."""
    parts = re.split(r"`([^`]+)`", line)
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    for index in range(1, len(parts), 2):
        if re.fullmatch(r"([A-Z]\w*|\w+_\w+)(\.\w+)*", parts[index]):
            parts[index] = f"`.{parts[index]}`"
        else:
            parts[index] = f"``{parts[index]}``"
    return "".join(parts)


def setup(app: Sphinx) -> None:
    """Connects the functions above."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-signature", source_signature)
    app.connect("autodoc-process-docstring", adapt_docstring, priority=400)
