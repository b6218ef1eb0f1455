"""Output folders are checked before the work, and files appear complete."""

import errno
import os
from pathlib import Path

import pytest

from encnet_jax.errors import UserError
from encnet_jax.files import check_folder, make_folder, whole_file


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
