"""Random access to TFRecord files, which TensorFlow itself reads only sequentially.

A record on disk is its length (8 bytes, little-endian), a checksum of the length (4),
the data, and a checksum of the data (4). One pass over the lengths locates all records;
the resulting index is stored next to them, so that later starts skip the pass.
"""

import io
import logging
import os
import struct
import threading
import uuid
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from encnet_jax.errors import UserError

_HEADER, _FOOTER = 12, 4
# Bytes per read while locating records. On a local disk, small reads skip the data in
# between; on remote storage, a request costs more than reading through it.
_LOCAL_BLOCK, _REMOTE_BLOCK = 4096, 2**25
_log = logging.getLogger(__name__)


class _Index(NamedTuple):
    """Location of the records.

    Attributes:
        names: Base names of the files.
        sizes: Sizes of the files in bytes.
        shard: Index of the file that holds each record, (n,).
        offset: Byte offset of each record in its file, (n,).
        length: Length of each record's data in bytes, (n,).
    """

    names: np.ndarray
    sizes: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray


class Records:
    """The records of several TFRecord files, indexed in the order of the files.

    Raises:
        UserError: A file is damaged.
    """

    def __init__(self, paths: list[str]):
        self._files = [_File(path) for path in paths]
        with ThreadPoolExecutor(16) as pool:
            sizes = list(pool.map(_File.size, self._files))
            index_path = f"{paths[0]}.index"
            index = _load_index(index_path, paths, sizes)
            if index is None:
                offsets = list(pool.map(_find_records, self._files, sizes))
                index = _make_index(paths, sizes, offsets)
                _store_index(index_path, index)
        self._index = index

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._index.offset)

    def __getitem__(self, index: int) -> bytes:
        """Returns the data of one record.

        Raises:
            UserError: The file has changed since it was indexed.
        """
        file = self._files[self._index.shard[index]]
        length = int(self._index.length[index])
        record = file.read(int(self._index.offset[index]), _HEADER + length)
        if len(record) != _HEADER + length or _length(record, 0) != length:
            raise UserError(
                f"{file.path}: has changed since it was indexed: if it is intact, "
                f"delete {self._files[0].path}.index to index it again"
            )
        return record[_HEADER:]

    def layout(self) -> tuple[np.ndarray, ...]:
        """Returns the names and sizes of the files, and the lengths of the records."""
        return self._index.names, self._index.sizes, self._index.length

    def features(self, index: int) -> dict[str, Any]:
        """Returns the fields of one record, a `tf.train.Example`.

        Each is bytes or an integer, the first value if there are several.

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
    """A file, local or remote, that threads read at any offset."""

    def __init__(self, path: str):
        self.path = path
        # Without `pread`, as on Windows, threads cannot share a descriptor.
        self.is_local = "://" not in path and hasattr(os, "pread")
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
        # One handle per thread, as reads move its position; opening one is slow.
        file = getattr(self._opened, "file", None)
        if file is None:
            file = self._opened.file = tf.io.gfile.GFile(self.path, "rb")
        file.seek(offset)
        return file.read(count)


def _length(data: bytes, offset: int) -> int:
    return struct.unpack_from("<Q", data, offset)[0]


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
        raise UserError(f"{file.path}: not a complete TFRecord file; prepare it again")
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


def _load_index(index_path: str, paths: list[str], sizes: list[int]) -> _Index | None:
    """Returns the stored index, unless it is invalid or of other files."""
    try:
        with tf.io.gfile.GFile(index_path, "rb") as file:
            content = file.read()
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            index = _Index(**arrays)
    except tf.errors.OpError:  # no such file
        return None
    except Exception:  # damaged in one of many ways
        _log.warning("%s: not a record index; rebuilding it", index_path)
        return None
    names = [os.path.basename(path) for path in paths]
    if index.names.tolist() == names and index.sizes.tolist() == sizes:
        return index
    _log.info("%s: out of date; rebuilding it", index_path)
    return None


def _store_index(index_path: str, index: _Index) -> None:
    """Writes an index atomically; if that fails, the next start scans again."""
    content = io.BytesIO()
    np.savez_compressed(content, **index._asdict())
    unfinished = f"{index_path}.{uuid.uuid4().hex}"  # other hosts may write it too
    try:
        with tf.io.gfile.GFile(unfinished, "wb") as file:
            file.write(content.getvalue())
        tf.io.gfile.rename(unfinished, index_path, overwrite=True)
    except tf.errors.OpError as error:
        _log.info("%s: cannot be written: %s", index_path, error.message)
        if tf.io.gfile.exists(unfinished):
            tf.io.gfile.remove(unfinished)
