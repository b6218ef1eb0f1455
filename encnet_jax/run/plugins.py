"""Modules of users that register networks, backbones, or data sets of their own."""

import importlib
import os
import sys

from encnet_jax.errors import UserError

VARIABLE = "ENCNET_PLUGINS"


def import_plugins() -> None:
    """Imports the modules that the environment variable `ENCNET_PLUGINS` names.

    They are separated by commas, and are also looked for in the current folder. A run
    stores only the name of its network: without the module that adds it, it cannot be
    read.

    Raises:
        UserError: There is no such module. What it raises itself is not caught.
    """
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    if not any(names):
        return
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: it must not hide an installed package
    for name in filter(None, names):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # The module itself, or a package that it is in, not what it imports.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"{VARIABLE}={os.environ[VARIABLE]}: no module {name!r} in the current "
                "folder, on PYTHONPATH, or installed"
            ) from error
        except (ValueError, TypeError) as error:
            if name.startswith(".") or "/" in name:
                raise UserError(
                    f"{VARIABLE}={os.environ[VARIABLE]}: must be names of modules"
                ) from error
            raise
