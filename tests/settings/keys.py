"""Which tests are for which key of the configuration.

A test marked `sets("data.crop_size")` fails if the program does not read that key;
`tests/cut_settings.py` checks that it does.
"""

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
# Files outside this folder that have marked tests.
ELSEWHERE = ("tests/train/test_image_limit.py",)


def test_files():
    """Returns the files with marked tests, relative to the repository."""
    here = sorted(FOLDER.glob("test_*_settings.py"))
    return [*(str(path.relative_to(ROOT)) for path in here), *ELSEWHERE]


def marked_keys():
    """Returns the keys that have a test."""
    keys = set()
    for file in test_files():
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for name, test in vars(module).items():
            if name.startswith("test_"):
                for mark in _marks(test):
                    keys.update(mark.args)
    return keys


def _marks(test):
    """Yields the marks `sets` of a test, and of its parameters."""
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize":
            for values in mark.args[1]:
                yield from (m for m in getattr(values, "marks", ()) if m.name == "sets")
        elif mark.name == "sets":
            yield mark
