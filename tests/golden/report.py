"""Prints the errors that the tests here measure and allow, as a table in Markdown.

    python -m tests.golden.report [PAGE]

With PAGE, also puts the table there between the lines `<!-- parity -->` and
`<!-- /parity -->`. One row for each test and case: the array whose error is the largest
part of what is allowed.
"""

import os
import re
import sys
from pathlib import Path

import pytest

_BEGIN, _END = "<!-- parity -->\n", "<!-- /parity -->\n"
_HEADER = """\
| case | test | arrays | closest to its limit | largest value | error | allowed |
| --- | --- | ---: | --- | ---: | ---: | ---: |
"""


class _Collector:
    """A plugin that gathers what the fixture `check` records."""

    def __init__(self):
        self.found: dict[tuple[str, str], list[tuple]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        test = report.nodeid.rpartition("::")[2]
        for key, (case, *rest) in report.user_properties:
            if key == "parity":
                self.found.setdefault((case, test), []).append(tuple(rest))

    def table(self) -> str:
        rows = []
        for (case, test), found in sorted(self.found.items()):
            name, largest, error, allowed = max(found, key=lambda f: f[2] / f[3])
            rows.append(
                f"| `{case}` | {_words(test, case)} | {len(found)} | `{name}` "
                f"| {largest:.3g} | {error:.1e} | {allowed:.1e} |\n"
            )
        return _HEADER + "".join(rows)


def _words(test: str, case: str) -> str:
    words, _, variant = test.removeprefix("test_").partition("[")
    # Without the tolerance, where that is a parameter of the test.
    variant = re.sub(r"-[\d.]+$", "", variant.removesuffix("]"))
    words = re.sub(r" match(es)?\b", "", words.replace("_", " "))
    return f"{words} ({variant})" if variant and variant != case else words


def main(arguments: list[str]) -> int:
    """Runs the tests, prints the table, and puts it in a page if one is given."""
    collector = _Collector()
    # But for the test of the page itself, which may lack a new case.
    options = [os.path.dirname(__file__), "-q", "-k", "not page"]
    code = pytest.main(options, plugins=[collector])
    table = collector.table()
    print(table)
    if arguments and code == 0:
        page = Path(arguments[0])
        before, rest = page.read_text().split(_BEGIN)
        after = rest.partition(_END)[2]
        page.write_text(before + _BEGIN + table + _END + after)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
