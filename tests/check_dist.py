"""Checks the contents of a wheel and a source distribution: check_dist.py FOLDER.

`.ci/smoke` calls it on what it built; exits with 1 if a file is missing or too many.
"""

import re
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]


def source_files() -> dict[str, str]:
    """Returns the files of the package by their path in the wheel, and here."""
    package = ROOT / "encnet_jax"
    files = {path: path for path in package.rglob("*.py")}
    files |= {path: path for path in package.glob("data/tables/*.csv")}
    files |= {path: path for path in package.glob("report/templates/*")}
    files |= {package / "py.typed": package / "py.typed"}
    files |= {package / f"configs/{p.name}": p for p in ROOT.glob("configs/*.py")}
    return {
        target.relative_to(ROOT).as_posix(): path.relative_to(ROOT).as_posix()
        for target, path in files.items()
    }


def check_wheel(path: Path) -> str:
    """Returns the version of a wheel; asserts that it has the package and no more."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        tag = wheel.read(f"{info}/WHEEL").decode()
        scripts = wheel.read(f"{info}/entry_points.txt").decode()
    found = {name for name in names if not name.startswith(f"{info}/")}
    expected = set(source_files())
    assert found == expected, f"{path.name}: {sorted(found ^ expected)}"
    assert len([name for name in found if name.startswith("encnet_jax/configs/")]) > 9
    assert f"{info}/licenses/LICENSE" in names
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "\nTag: py3-none-any\n" in tag
    assert "encnet = encnet_jax.__main__:main" in scripts
    core = [
        requirement
        for requirement in metadata.get_all("Requires-Dist")
        if "extra ==" not in requirement
    ]
    assert core and not re.search("tensorflow|torch|matplotlib", " ".join(core)), core
    return metadata["Version"]


def check_sdist(path: Path, version: str) -> None:
    """Asserts that a source distribution has what builds the wheel, and no tests."""
    root = f"encnet_jax-{version}/"
    assert path.name == f"{root[:-1]}.tar.gz"
    with tarfile.open(path) as sdist:
        names = {item.name.removeprefix(root) for item in sdist if item.isfile()}
    needed = {*source_files().values(), "pyproject.toml", "setup.py", "README.md"}
    needed |= {"LICENSE", "CHANGELOG.md", "CITATION.cff"}
    assert not needed - names, f"{path.name}: without {sorted(needed - names)}"
    extra = names - needed - {"PKG-INFO", "setup.cfg", "MANIFEST.in"}
    extra = {name for name in extra if not name.startswith("encnet_jax.egg-info/")}
    assert not extra, f"{path.name}: {sorted(extra)}"


def main() -> None:
    """Checks the one wheel and the one source distribution of a folder."""
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    version = check_wheel(wheel)
    check_sdist(sdist, version)
    print(f"{wheel.name}, {sdist.name}: complete")


if __name__ == "__main__":
    main()
