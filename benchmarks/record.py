"""Results in a JSON file that is complete at any time."""

import json
import os
from pathlib import Path
from typing import Any


class BenchmarkRecord:
    """Results by section and name, in a file that several processes add to in turn."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def data(self) -> dict[str, dict[str, Any]]:
        """What the file has."""
        return json.loads(self.path.read_text())

    def start(self, *, resume: bool) -> None:
        """Makes the file, or clears it; to resume keeps what it has."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = self.data if resume and self.path.exists() else {"done": {}}
        self._write({**data, "left_out": {}, "failed": {}})

    def has(self, section: str, name: str) -> bool:
        """Returns whether there is a result."""
        return name in self.data.get(section, {})

    def put(self, section: str, name: str, result: Any) -> None:
        """Adds a result, or replaces it."""
        data = self.data
        data.setdefault(section, {})[name] = result
        self._write(data)

    def _write(self, data: dict[str, dict[str, Any]]) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(data, indent=2) + "\n")
        os.replace(new, self.path)
