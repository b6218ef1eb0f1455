"""Pages from templates: one HTML file each, which loads nothing."""

from pathlib import Path
from typing import Any

from encnet_jax.files import whole_file

# Marks the pages, so that no other file is replaced by one.
MARK = '<meta name="generator" content="encnet_jax">'
_TEMPLATES = Path(__file__).parent / "templates"


def save_page(path: Path, template: str, **values: Any) -> None:
    """Writes a page in place of one that is there.

    Args:
        path: File to write.
        template: Name of a file in `templates/`.
        **values: What the template shows; text in it is escaped.
    """
    # Here, so that scores can be computed without it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    text = environment.get_template(template).render(mark=MARK, **values)
    with whole_file(path) as file:
        # File names may hold bytes that are no characters.
        file.write(text.encode("utf-8", "backslashreplace"))


def percent(value: float | None, digits: int = 1) -> str:
    """Returns a share in percent without the sign; a dash for NaN and None."""
    if value is None or value != value:
        return "–"
    return f"{100 * value:.{digits}f}"
