"""Random access to TFRecord files, which TensorFlow itself reads only in order.

A record on disk is its length (8 bytes, little-endian), a checksum of that (4), the
data, and a checksum of them (4). One pass over the lengths finds every record; what it
found is kept in a file beside the records, so that later starts need not pass again.
"""

import io
import logging
import os
import struct
import threading
import uuid
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from encnet_jax.errors import UserError

_HEADER, _FOOTER = 12, 4
# Bytes read at once in search of lengths. A local disk skips data between them; far
# away, a request takes longer than to read on.
_LOCAL_BLOCK, _REMOTE_BLOCK = 4096, 2**25
_log = logging.getLogger(__name__)


class _Index(NamedTuple):
    """Where records are: `names` and `sizes` of the files, (n,) of the records."""

    names: np.ndarray
    sizes: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray


class Records:
    """The records of some TFRecord files, by index, in the order of the files.

    Raises:
        UserError: A file is damaged.
    """

    def __init__(self, paths: list[str]):
        self._files = [_File(path) for path in paths]
        with ThreadPoolExecutor(16) as pool:
            sizes = list(pool.map(_File.size, self._files))
            where = f"{paths[0]}.index"
            index = _load_index(where, paths, sizes)
            if index is None:
                offsets = list(pool.map(_find_records, self._files, sizes))
                index = _make_index(paths, sizes, offsets)
                _store_index(where, index)
        self._index = index

    def __len__(self) -> int:
        """Returns the index of records."""
        return len(self._index.offset)

    def __getitem__(self, index: int) -> bytes:
        """Returns the data of one record.

        Raises:
            UserError: The file is not the one that was indexed.
        """
        file = self._files[self._index.shard[index]]
        length = int(self._index.length[index])
        record = file.read(int(self._index.offset[index]), _HEADER + length)
        if len(record) != _HEADER + length or _length(record, 0) != length:
            raise UserError(
                f"{file.path}: no record where one was: if the file is whole, delete "
                f"{self._files[0].path}.index, which is made again"
            )
        return record[_HEADER:]

    def features(self, index: int) -> dict[str, Any]:
        """Returns the fields of one record, which must be a tf.train.Example.

        Each is bytes or an integer, the first if it holds several.

        Raises:
            UserError: The record is damaged.
        """
        try:
            example = tf.train.Example.FromString(self[index])
        except DecodeError as error:
            path = self._files[self._index.shard[index]].path
            raise UserError(f"{path}: record {index} is damaged: {error}") from error
        found = {}
        for key, field in example.features.feature.items():
            values = field.bytes_list.value or field.int64_list.value
            if values:
                found[key] = values[0]
        return found


class _File:
    """A file, local or not, that many threads read at any place."""

    def __init__(self, path: str):
        self.path = path
        self.is_local = "://" not in path
        if self.is_local:
            try:
                self._descriptor = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from error
            weakref.finalize(self, os.close, self._descriptor)
        else:
            self._opened = threading.local()

    def size(self) -> int:
        if self.is_local:
            return os.fstat(self._descriptor).st_size
        return tf.io.gfile.stat(self.path).length

    def read(self, offset: int, count: int) -> bytes:
        if self.is_local:
            return os.pread(self._descriptor, count, offset)
        # One a thread, since reading moves a place in it; kept, since opening is slow.
        file = getattr(self._opened, "file", None)
        if file is None:
            file = self._opened.file = tf.io.gfile.GFile(self.path, "rb")
        file.seek(offset)
        return file.read(count)


def _length(data: bytes, place: int) -> int:
    return struct.unpack_from("<Q", data, place)[0]


def _find_records(file: _File, size: int) -> list[int]:
    """Returns the offsets of the records, and the end of the file."""
    block = _LOCAL_BLOCK if file.is_local else _REMOTE_BLOCK
    offsets, data, start = [0], b"", 0
    while offsets[-1] < size:
        if offsets[-1] + _HEADER > start + len(data):
            start = offsets[-1]
            data = file.read(start, block)
        if len(data) < offsets[-1] - start + _HEADER:
            break
        length = _length(data, offsets[-1] - start)
        offsets.append(offsets[-1] + _HEADER + length + _FOOTER)
    if offsets[-1] != size:
        raise UserError(f"{file.path}: not a whole TFRecord file; prepare it again")
    return offsets


def _make_index(paths: list[str], sizes: list[int], offsets: list[list[int]]) -> _Index:
    lengths = [np.diff(ends) - _HEADER - _FOOTER for ends in offsets]
    return _Index(
        names=np.array([os.path.basename(path) for path in paths]),
        sizes=np.array(sizes),
        shard=np.repeat(np.arange(len(paths)), [len(part) for part in lengths]),
        offset=np.concatenate([ends[:-1] for ends in offsets]).astype(np.int64),
        length=np.concatenate(lengths).astype(np.int64),
    )


def _load_index(where: str, paths: list[str], sizes: list[int]) -> _Index | None:
    """Returns a stored index if it is one, of these files at these sizes."""
    try:
        with tf.io.gfile.GFile(where, "rb") as file:
            content = file.read()
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            index = _Index(**arrays)
    except tf.errors.OpError:  # none there
        return None
    except (ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile):
        _log.warning("%s: no index of records; it is made again", where)
        return None
    names = [os.path.basename(path) for path in paths]
    if index.names.tolist() == names and index.sizes.tolist() == sizes:
        return index
    _log.info("%s: of other files; it is made again", where)
    return None


def _store_index(where: str, index: _Index) -> None:
    """Writes an index, at once; where that is not allowed, the next start scans too."""
    content = io.BytesIO()
    np.savez_compressed(content, **index._asdict())
    unfinished = f"{where}.{uuid.uuid4().hex}"  # other hosts may write theirs
    try:
        with tf.io.gfile.GFile(unfinished, "wb") as file:
            file.write(content.getvalue())
        tf.io.gfile.rename(unfinished, where, overwrite=True)
    except tf.errors.OpError as error:
        _log.info("%s: cannot be written: %s", where, error.message)
        if tf.io.gfile.exists(unfinished):
            tf.io.gfile.remove(unfinished)
