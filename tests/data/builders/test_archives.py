"""Tests of how published archives are found, checked and unpacked."""

import dataclasses
import hashlib

import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from encnet_jax.data.builders.archives import Archive, unpacked  # noqa: E402
from encnet_jax.errors import UserError  # noqa: E402
from tests.data.builders.archives import pack, unpack  # noqa: E402

FILES = {"set/a.txt": b"first" * 500, "set/deep/b.txt": b"second"}
SET = Archive(file="set.zip", contents="set", url="http://example.org/set.zip")
KINDS = ["set.zip", "set.tar", "set.tgz"]


@pytest.fixture
def manager(tmp_path):
    """Returns TFDS's manager; nothing has been downloaded or placed manually."""
    return tfds.download.DownloadManager(
        download_dir=tmp_path / "downloads",
        manual_dir=tmp_path / "manual",
        manual_dir_instructions="Put them here.",
    )


def assert_whole(folder):
    """Checks that a folder holds the files, whole."""
    for name, content in FILES.items():
        assert (folder / name).read_bytes() == content


def problem(manager, tmp_path, archive=SET):
    """Returns the line that is said of an archive; nothing must be left of it."""
    with pytest.raises(UserError) as raised:
        unpacked(manager, archive)
    assert not list((tmp_path / "downloads/extracted").iterdir())
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("file", KINDS)
def test_archive_placed_manually_is_unpacked(manager, tmp_path, file):
    pack(tmp_path / "manual" / file, FILES)
    assert_whole(unpacked(manager, dataclasses.replace(SET, file=file)))


def test_folder_placed_manually_is_used_as_it_is(manager, tmp_path):
    unpack(tmp_path / "manual", FILES)
    assert unpacked(manager, SET) == tmp_path / "manual"


def test_folder_with_a_place_of_its_own_is_looked_for_there(manager, tmp_path):
    unpack(tmp_path / "manual", {"set/other": b"of another archive"})
    unpack(tmp_path / "manual/here", FILES)
    found = unpacked(manager, dataclasses.replace(SET, folder="here"))
    assert found == tmp_path / "manual/here"


def test_archive_is_unpacked_once_but_anew_when_it_is_replaced(manager, tmp_path):
    path = tmp_path / "manual" / SET.file
    pack(path, {"set/a.txt": b"an earlier version"})
    folder = unpacked(manager, SET)
    (folder / "set/mark").touch()
    assert (unpacked(manager, SET) / "set/mark").exists()
    pack(path, FILES)
    assert_whole(unpacked(manager, SET))


def test_archive_is_downloaded_if_it_was_not_placed_manually(
    manager, tmp_path, monkeypatch
):
    pack(tmp_path / "elsewhere" / SET.file, FILES)
    asked = []
    monkeypatch.setattr(
        manager,
        "download",
        lambda url: asked.append(url) or tmp_path / "elsewhere" / SET.file,
    )
    assert_whole(unpacked(manager, SET))
    assert asked == [SET.url]


@pytest.mark.parametrize("error", [OSError, tfds.download.DownloadError])
def test_failed_download_names_the_address(manager, tmp_path, monkeypatch, error):
    def download(url):
        raise error("HTTP code: 404.\nSorry.")

    monkeypatch.setattr(manager, "download", download)
    message = problem(manager, tmp_path)
    assert message == (
        f"{SET.url}: cannot be downloaded: HTTP code: 404. Sorry.; set.zip can also be "
        f"put into {tmp_path / 'downloads/manual'}"
    )


def test_archive_without_an_address_must_be_downloaded_by_hand(manager, tmp_path):
    archive = Archive("set.zip", "set", homepage="https://example.org")
    place = tmp_path / "downloads/manual"
    expected = (
        "set.zip: must be downloaded by hand from https://example.org and put into "
    )
    assert problem(manager, tmp_path, archive) == expected + str(place)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_archive_is_compared_with_its_digest(manager, tmp_path, algorithm):
    path = tmp_path / "manual" / SET.file
    pack(path, FILES)
    digest = hashlib.new(algorithm, path.read_bytes()).hexdigest()
    archive = dataclasses.replace(SET, digest=f"{algorithm}:{digest}")
    path.write_bytes(path.read_bytes() + b"!")
    message = problem(manager, tmp_path, archive)
    assert f"{path}: {algorithm}" in message and f"published is {digest}" in message
    path.write_bytes(path.read_bytes()[:-1])
    assert_whole(unpacked(manager, archive))


@pytest.mark.parametrize("file", KINDS)
@pytest.mark.parametrize("harm", ["cut", "other", "empty"])
def test_damaged_archive_is_named(manager, tmp_path, file, harm):
    path = tmp_path / "manual" / file
    pack(path, FILES)
    content = path.read_bytes()
    harmed = {"cut": content[: len(content) // 4], "other": b"<html>", "empty": b""}
    path.write_bytes(harmed[harm])
    message = problem(manager, tmp_path, dataclasses.replace(SET, file=file))
    assert message.startswith(f"{path}: damaged: ")


@pytest.mark.parametrize("file", ["set.zip", "set.tgz"])
def test_flipped_bit_is_noticed_by_the_checksum_of_the_format(manager, tmp_path, file):
    path = tmp_path / "manual" / file
    pack(path, FILES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = problem(manager, tmp_path, dataclasses.replace(SET, file=file))
    assert message.startswith(f"{path}: damaged: ")


def test_archive_of_another_set_is_named_and_not_kept(manager, tmp_path):
    path = tmp_path / "manual" / SET.file
    pack(path, {"readme.txt": b"something else"})
    assert problem(manager, tmp_path) == f"{path}: lacks set; is it set.zip?"


@pytest.mark.parametrize("file", KINDS)
def test_files_outside_the_folder_are_not_written(manager, tmp_path, file):
    pack(tmp_path / "manual" / file, {**FILES, "../outside": b"", "/tmp/set/x": b""})
    folder = unpacked(manager, dataclasses.replace(SET, file=file))
    found = {path for path in folder.rglob("*") if path.is_file()}
    assert found == {folder / name for name in FILES}
    assert not list(tmp_path.rglob("outside"))
