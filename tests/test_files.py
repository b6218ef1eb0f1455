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
    user_path,
    whole_file,
    whole_folder,
)


def test_empty_text_is_not_the_current_folder():
    with pytest.raises(UserError, match="^'': an empty path, as of a shell var"):
        user_path("")
    assert user_path(".") == user_path(Path()) == Path(".")


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
    (tmp_path / "real").mkdir(mode=0o750)
    (tmp_path / "real" / ".encnet-killed.tmp").mkdir()
    (tmp_path / "link").symlink_to("real")
    inode = (tmp_path / "real").stat().st_ino
    for name in ("a/new", "link"):
        output = tmp_path / name
        with whole_folder(output, "--output") as folder:
            (folder / "model").write_text("whole")
            assert not (output / "model").exists()
        assert (output / "model").read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == ["a", "link", "real"]
    assert (tmp_path / "link").is_symlink()
    # The same folder still: a mount point, a shell's own, or one with special rights.
    assert (tmp_path / "real").stat().st_ino == inode
    assert sorted(os.listdir(tmp_path / "real")) == [".encnet-killed.tmp", "model"]
    with pytest.raises(UserError, match="--output=.*real: is not empty"):
        check_empty(tmp_path / "real", "--output")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_folder_that_fails_leaves_nothing(tmp_path, exists, error):
    output = tmp_path / "new"
    if exists:
        output.mkdir()
    raised = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(raised) as found, whole_folder(output, "--output") as folder:
        (folder / "model").write_text("half")
        raise error
    assert raised is KeyboardInterrupt or "new: cannot be written to" in str(found)
    assert os.listdir(tmp_path) == ["new"] * exists
    assert not exists or not os.listdir(output)


def test_folder_is_not_blamed_for_other_files(tmp_path):
    image = tmp_path / "elsewhere" / "a.jpg"
    with pytest.raises(UserError, match=f"^{image}: No such file or directory"):
        with whole_folder(tmp_path / "deep" / "new", "--output"):
            image.open()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").touch()
    with pytest.raises(UserError, match="--output=.*new: is not empty"):
        with whole_folder(tmp_path / "new", "--output"):
            pytest.fail("not reached")
    assert os.listdir(tmp_path / "new") == ["mine"]


def test_folder_that_another_command_fills_meanwhile_stays(tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match="--output=.*: is not empty"):
            with whole_folder(tmp_path, "--output") as folder:
                (folder / "model").write_text("mine")
                (tmp_path / "model").write_text("theirs")
        assert (tmp_path / "model").read_text() == "theirs"
        assert os.listdir(tmp_path) == ["model"]
        (tmp_path / "model").unlink()
