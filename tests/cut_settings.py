"""Cuts each key of the configuration in turn, and expects a test to fail.

    python -m tests.cut_settings [KEY ...]

A cut key has its default wherever the package reads it, whatever a test sets: as if its
wiring were cut. Then every single place that reads it is cut on its own. Prints a table
and exits with 1 if a cut leaves the tests of the key green. Not collected by pytest;
takes some minutes.
"""

import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator

import pytest
from _pytest.runner import runtestprotocol
from ml_collections import ConfigDict

import encnet_jax
from encnet_jax.config import default
from tests.settings.keys import test_files

PACKAGE = os.path.dirname(encnet_jax.__file__) + os.sep
GROUPS = {
    frozenset(group.keys()): name
    for name, group in default().items()
    if isinstance(group, ConfigDict)
}
# Places that check values, or store and compare them, and do nothing else with them.
CHECKS = (
    "config_checks.py",
    "train/settings.py:check_",
    "train/resume.py:check_",
    "train/resume.py:log_changes",
    "run/model_config.py:check_",
    "evaluate/run.py:_identity",
    "evaluate/settings.py:differences_from_training",
    "train/class_balance.py:save_weights",
    "config.py:",
)
# Reads that nothing depends on.
UNUSED = {("model.weights", "run/model_config.py:model_settings")}  # deleted there


class Cut:
    """Replaces reads of a key by its default while it is active.

    Attributes:
        key: The dotted key, or None to cut nothing.
        place: `file:function` of the only read to replace; None: all.
        places: Where keys were read, by key.
    """

    def __init__(self):
        self.key = self.place = None
        self.places = defaultdict(set)
        self._getitem, self._to_dict = ConfigDict.__getitem__, ConfigDict.to_dict

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        cut = self

        def getitem(config, key):
            return cut._read(config, key, cut._getitem(config, key))

        def to_dict(config, *args, **kwargs):
            values = cut._to_dict(config, *args, **kwargs)
            return {k: cut._read(config, k, v) for k, v in values.items()}

        ConfigDict.__getitem__, ConfigDict.to_dict = getitem, to_dict
        try:
            yield
        finally:
            ConfigDict.__getitem__ = self._getitem
            ConfigDict.to_dict = self._to_dict

    def _read(self, config, key, value):
        if isinstance(value, (ConfigDict, dict)) or not isinstance(key, str):
            return value
        place = _reader()
        if place is None:
            return value
        group = GROUPS.get(frozenset(self._fields(config)))
        dotted = f"{group}.{key}" if group else key
        self.places[dotted].add(place)
        if dotted == self.key and self.place in (None, place):
            return DEFAULTS[dotted]
        return value

    @staticmethod
    def _fields(config):
        return object.__getattribute__(config, "_fields")


def _reader() -> str | None:
    """Returns `file:function` of the package that reads a key, or None if no such."""
    frame = sys._getframe(1)
    while frame:
        file = frame.f_code.co_filename
        if "ml_collections" not in file and file != __file__:
            if not file.startswith(PACKAGE):
                return None
            name = frame.f_code.co_name
            if not name.startswith("<"):
                return f"{file.removeprefix(PACKAGE)}:{name}"
        frame = frame.f_back
    return None


def flattened(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


DEFAULTS = dict(flattened(default()))


class Cutter:
    """Plugin that runs the tests of each key with and without the key cut."""

    def __init__(self, keys):
        self.keys, self.cut, self.green = keys, Cut(), 0

    def pytest_runtestloop(self, session):
        tests = defaultdict(list)
        for item in session.items:
            for mark in item.iter_markers("sets"):
                for key in mark.args:
                    tests[key].append(item)
        with self.cut.installed():
            for key in self.keys or DEFAULTS:
                self.check(key, tests[key])
        session.testsfailed = self.green
        return True

    def check(self, key, items):
        self.cut.key = self.cut.place = None
        self.cut.places.clear()
        if not items or self.failing(items):
            self.report(key, "no test" if not items else "fails uncut", False)
            return
        places = sorted(self.cut.places[key])
        for place in (None, *places):
            if place is None or not (
                place.startswith(CHECKS) or (key, place) in UNUSED
            ):
                self.cut.key, self.cut.place = key, place
                self.report(key, place or "everywhere", self.failing(items))

    def failing(self, items):
        """Returns the name of the first test that fails, or an empty text."""
        for item in items:
            reports = runtestprotocol(item, nextitem=None, log=False)
            if any(report.failed for report in reports):
                return item.name
        return ""

    def report(self, key, place, failing):
        self.green += not failing
        verdict = f"red: {failing}" if failing else "GREEN"
        print(f"{key:34} {place:52} {verdict}", flush=True)


def main() -> int:
    cutter = Cutter(sys.argv[1:])
    options = ["-o", "addopts=--strict-markers", "-p", "no:cacheprovider"]
    options += ["-p", "no:terminal"]
    return int(pytest.main([*options, *test_files()], plugins=[cutter]) != 0)


if __name__ == "__main__":
    sys.exit(main())
