"""Files of users, read whole; what cannot be read is a `UserError` that names them."""

import json
from pathlib import Path
from typing import Any

from encnet_jax.errors import UserError


def read_file(path: Path) -> bytes:
    """Returns the content of a file; raises `UserError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Returns the text of a file; raises `UserError` if it is not UTF-8."""
    try:
        # `-sig` skips the byte order mark that editors on Windows write.
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file; raises `UserError` if it is none."""
    try:
        return json.loads(read_text(path))
    except UserError:  # which is a ValueError
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
