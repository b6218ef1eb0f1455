"""Results in a JSON file that is complete at any time."""

import json
from pathlib import Path
from typing import Any

from encnet_jax.errors import UserError
from encnet_jax.files import whole_file

_NOT_RESULTS = {"left_out", "failed"}


class BenchmarkRecord:
    """Results by section and name, in a file that several processes add to in turn."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def data(self) -> dict[str, dict[str, Any]]:
        """What the file has; raises `UserError` if it is of something else."""
        try:
            data = json.loads(self.path.read_text())
        except ValueError:
            data = None
        if not isinstance(data, dict) or "done" not in data:
            raise UserError(f"{self.path}: not a file of results; name another")
        return data

    def start(self, *, resume: bool, flag: str = "") -> None:
        """Makes the file; to resume keeps what one has.

        Args:
            resume: Whether results in the file may stay and be added to.
            flag: How the user says so, for the error.

        Raises:
            UserError: The file is of something else, or has results that are not to be
                resumed.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = self.data if self.path.exists() else {"done": {}}
        if not resume and any(data[key] for key in data.keys() - _NOT_RESULTS):
            remedy = f"{flag} keeps them, or name" if flag else "name"
            raise UserError(f"{self.path}: has results; {remedy} another --output")
        self._write({**data, "left_out": {}, "failed": {}})

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Stores the flags that all results depend on: flag -> value.

        Raises:
            UserError: The file has results with others.
        """
        known = self.data.get("settings", {})
        for name, value in settings.items():
            if known.get(name, value) != value:
                raise UserError(
                    f"--{name}={value}: the results in {self.path} have {known[name]}; "
                    "give another --output"
                )
        for name, value in settings.items():
            self.put("settings", name, value)

    def has(self, section: str, name: str) -> bool:
        """Returns whether there is a result."""
        return name in self.data.get(section, {})

    def put(self, section: str, name: str, result: Any) -> None:
        """Adds a result, or replaces it."""
        data = self.data
        data.setdefault(section, {})[name] = result
        self._write(data)

    def _write(self, data: dict[str, dict[str, Any]]) -> None:
        with whole_file(self.path) as file:
            file.write((json.dumps(data, indent=2) + "\n").encode())
