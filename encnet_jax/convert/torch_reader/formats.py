"""The two file formats of torch.save: zip and legacy."""

from __future__ import annotations

import io
import mmap
import pathlib
import struct
import sys
import zipfile
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from encnet_jax.convert.torch_reader.tensors import (
    Lookup,
    Tensors,
    UnsupportedFileError,
    quotable,
)
from encnet_jax.convert.torch_reader.unpickler import SafeUnpickler

ALLOWED = "a file of torch.save (zip or legacy format) or .safetensors"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def load_zip(file: pathlib.Path, data: UInt8[np.ndarray, " size"]) -> Any:
    """Loads the object of a zip archive, in which each storage is a member."""
    members = dict(_zip_members(file, data))
    roots = [name for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise UnsupportedFileError(
            f"is a zip archive, but not of torch.save; allowed: {ALLOWED}"
        )
    root = roots[0].removesuffix("data.pkl")
    order = members.get(root + "byteorder", data[:0]).tobytes()
    if order not in (b"", b"little", b"big"):
        raise UnsupportedFileError("has an unknown byte order; allowed: little, big")
    swap = (order or b"little").decode() != sys.byteorder

    def lookup(key: str, dtype: np.dtype) -> np.ndarray:
        if (raw := members.get(f"{root}data/{key}")) is None:
            raise UnsupportedFileError(
                f"lacks storage {quotable(key)!r}; it is damaged"
            )
        return _native(raw, dtype, swap)

    stream = io.BytesIO(members[roots[0]].tobytes())
    return SafeUnpickler(Tensors(lookup, data.size, swap)).run(stream)


def _zip_members(
    file: pathlib.Path, data: UInt8[np.ndarray, " size"]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the bytes, a view of `data`, of every member.

    Checksums are not verified, as in torch: torch.save may omit them.
    """
    seen: set[str] = set()
    total = 0
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if any(info.filename.endswith("/constants.pkl") for info in infos):
            raise UnsupportedFileError(
                "is a TorchScript archive, which holds code; allowed:"
                " torch.save(model.state_dict(), FILE)"
            )
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise UnsupportedFileError(
                    "has compressed or encrypted members; allowed: stored ones, as"
                    " torch.save writes them"
                )
            start = info.header_offset
            header = data[start : start + 30].tobytes() if start >= 0 else b""
            if header[:4] != b"PK\x03\x04" or len(header) < 30:
                raise UnsupportedFileError("has a damaged zip directory")
            start += 30 + sum(struct.unpack("<HH", header[26:]))
            total += info.file_size
            # Overlapping members would make a small file expand to a large one.
            if start + info.file_size > data.size or total > data.size:
                raise UnsupportedFileError(
                    "has members larger than the file; it is truncated"
                )
            if info.filename in seen:
                raise UnsupportedFileError("has two members of one name")
            seen.add(info.filename)
            yield info.filename, data[start : start + info.file_size]


def load_legacy(
    stream: mmap.mmap | io.BytesIO, data: UInt8[np.ndarray, " size"]
) -> Any:
    """Loads the object of a legacy file.

    The pickle precedes the storages, but only the pickle holds their types, so it runs
    twice: once to find the types, once to build the tensors.
    """

    def run(lookup: Lookup = lambda key, dtype: None) -> tuple[Any, Tensors]:
        tensors = Tensors(lookup, data.size, swap=False)
        return SafeUnpickler(tensors).run(stream), tensors

    magic, _ = run()
    if magic != _LEGACY_MAGIC:
        raise UnsupportedFileError(
            f"is a pickle, but not of torch.save; allowed: {ALLOWED}"
        )
    protocol, _ = run()
    if protocol != _LEGACY_PROTOCOL:
        raise UnsupportedFileError(
            f"has an unknown protocol; allowed: {_LEGACY_PROTOCOL}"
        )
    info, _ = run()
    if not isinstance(info, dict) or not isinstance(info.get("little_endian"), bool):
        raise UnsupportedFileError("lacks its byte order; it is damaged")
    order: Literal["little", "big"] = "little" if info["little_endian"] else "big"

    start = stream.tell()
    _, tensors = run()
    keys, _ = run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UnsupportedFileError("has no list of storages; it is damaged")
    storages = {}
    position = stream.tell()
    for key in keys:
        dtype = tensors.storage_types.get(key)
        if dtype is None or key in storages:
            raise UnsupportedFileError(
                f"lists storage {quotable(key)!r} twice or never uses it"
            )
        numel = int.from_bytes(data[position : position + 8].tobytes(), order)
        end = position + 8 + numel * dtype.itemsize
        if position + 8 > data.size or end > data.size:
            raise UnsupportedFileError(
                "ends before its last storage does; it is truncated"
            )
        raw = data[position + 8 : end]
        storages[key] = _native(raw, dtype, order != sys.byteorder)
        position = end

    def lookup(key: str, dtype: np.dtype) -> np.ndarray:
        if key not in storages:
            raise UnsupportedFileError(
                f"lacks storage {quotable(key)!r}; it is damaged"
            )
        return storages[key]

    stream.seek(start)
    return run(lookup)[0]


def _native(
    raw: UInt8[np.ndarray, " n"], dtype: np.dtype, swap: bool
) -> UInt8[np.ndarray, " n"]:
    """Returns the bytes of a storage in native byte order."""
    width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    if not swap or width == 1:
        return raw
    swapped = raw[: raw.size // width * width].view(f"u{width}").byteswap()
    swapped.flags.writeable = False
    return swapped.view(np.uint8)
