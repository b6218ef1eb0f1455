"""Output folders are checked before the work, and files appear complete."""

import errno
import os
from pathlib import Path

import pytest

from encnet_jax.errors import UserError
from encnet_jax.files import (
    check_empty,
    check_folder,
    make_folder,
    whole_file,
    whole_folder,
)


def test_folder_that_can_be_created_passes_and_is_not_created(tmp_path):
    check_folder(tmp_path, "--output")
    check_folder(tmp_path / "a" / "b", "--output")
    assert not list(tmp_path.iterdir())
    make_folder(tmp_path / "a" / "b", "--output")
    make_folder(tmp_path / "a" / "b", "--output")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("check", [check_folder, make_folder])
@pytest.mark.parametrize("name", ["file", "file/below", "link", "x" * 300])
def test_path_that_cannot_be_a_folder_is_one_line(tmp_path, check, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"--output={tmp_path / name}: ") as raised:
        check(tmp_path / name, "--output")
    assert "\n" not in str(raised.value)
    if check is check_folder and name.startswith("file"):
        assert "is a file; choose a folder" in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a read-only folder")
def test_unwritable_folder_is_refused():
    with pytest.raises(UserError, match="workdir=/proc/runs: cannot be written to"):
        check_folder(Path("/proc/runs"), "workdir")


def test_file_is_replaced_once_it_is_complete(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == [path.name]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_file_that_fails_leaves_the_old_one(tmp_path, error):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(type(error)), whole_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]


def test_folder_appears_once_it_is_complete(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("a/new", "link"):
        output = tmp_path / name
        with whole_folder(output, "--output") as folder:
            (folder / "model").write_text("whole")
            assert not output.exists() or not any(output.iterdir())
        assert (output / "model").read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == ["a", "link", "real"]
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(UserError, match="--output=.*real: is not empty"):
        check_empty(tmp_path / "real", "--output")


def test_folder_that_fails_leaves_nothing_and_replaces_nothing(tmp_path):
    output = tmp_path / "new"
    full = OSError(errno.ENOSPC, "full")
    for error, raised in (full, UserError), (KeyboardInterrupt(), KeyboardInterrupt):
        with pytest.raises(raised), whole_folder(output, "--output") as folder:
            (folder / "model").write_text("half")
            raise error
        assert not os.listdir(tmp_path)
    output.mkdir()
    (output / "mine").touch()
    with pytest.raises(UserError, match="--output=.*new: cannot be written to"):
        with whole_folder(output, "--output") as folder:
            (folder / "model").touch()
    assert os.listdir(tmp_path) == ["new"] and os.listdir(output) == ["mine"]
