"""Reads PyTorch checkpoint files without torch and without executing their code.

Pickles run on a safe unpickler. Sizes are checked against the bytes in the file before
any array is created, and arrays are read-only views of the memory-mapped file.

Both formats of torch.save are supported: the zip archive (torch 1.6 and later) and the
legacy one, a sequence of pickles followed by the raw storages.
"""

from __future__ import annotations

import io
import mmap
import os
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import safetensors
from jaxtyping import UInt8

from encnet_jax.convert.torch_reader.formats import ALLOWED, load_legacy, load_zip
from encnet_jax.convert.torch_reader.tensors import (
    DTYPES,
    Placeholder,
    UnsupportedFileError,
    quotable,
)
from encnet_jax.errors import UserError

__all__ = ["Placeholder", "load_file", "read_state_dict", "state_dict_of"]

T = TypeVar("T")

_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "C64": "complex64",
}
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model"),
    *("net", "network", "module", "weights"),
)
# DataParallel, torch.compile, Lightning (the name of the attribute with the network)
_MAX_PREFIXES = 16  # a malicious key can have millions
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
# Raised while parsing damaged bytes; anything else would be a bug in this module.
_MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    EOFError,
    NotImplementedError,
    MemoryError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
    DeprecationWarning,  # invalid escapes in strings, where warnings are errors
)


def load_file(path: str | os.PathLike[str]) -> Any:
    """Loads a PyTorch checkpoint, with NumPy arrays for its tensors.

    Mappings become dict, other containers list, tuple and (from pickle protocol 4) set;
    parameters become arrays, torch.dtype np.dtype, and objects of all other classes
    (optimizers, configs, NumPy objects, dates) `Placeholder`. Attributes of containers
    are dropped.

    Args:
        path: A file of torch.save, or a `.safetensors` file.

    Returns:
        The nested structure. Arrays from torch.save are read-only views of the
        memory-mapped file (of a copy, if its byte order is not native), so that the
        file must not be rewritten while they are in use. Shared storages and strides
        are preserved. Arrays from `.safetensors` are read-only copies.

    Raises:
        UserError: The file is missing, truncated, of another format, or needs
            something that is not allowed.
    """
    file = pathlib.Path(path)
    try:
        if file.exists() and not file.is_file():
            raise UnsupportedFileError(f"is not a file; allowed: {ALLOWED}")
        if file.suffix == ".safetensors":
            return _load_safetensors(file)
        stream, data = _open(file)
        if _kind(data) == "zip":
            return load_zip(file, data)
        return load_legacy(stream, data)
    except UserError:
        raise
    except UnsupportedFileError as error:
        raise UserError(f"{file}: {error}") from error
    except _MALFORMED as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or f"{type(error).__name__}: {error}"
        raise UserError(
            f"{file}: cannot be read ({quotable(reason)}); it is missing, truncated or"
            f" damaged; allowed: {ALLOWED}"
        ) from error


def read_state_dict(
    path: str | os.PathLike[str], prefix: str = ""
) -> dict[str, np.ndarray]:
    """Reads the state dict in a checkpoint file: `load_file`, then `state_dict_of`.

    Args:
        path: A file of torch.save, or a `.safetensors` file.
        prefix: See `without_prefixes`.

    Returns:
        Key -> read-only array, in the order of the file.

    Raises:
        UserError: The file cannot be read or holds no state dict.
    """
    return state_dict_of(load_file(path), source=str(path), prefix=prefix)


def state_dict_of(
    checkpoint: Any, source: str = "the checkpoint", prefix: str = ""
) -> dict[str, np.ndarray]:
    """Finds the state dict inside a checkpoint.

    It is the value of "state_dict", "model", "net" and the like, or else the top level
    itself, or else the only mapping in it that holds arrays. Prefixes are removed by
    `without_prefixes`. Entries other than arrays are dropped.

    Args:
        checkpoint: The output of `load_file`.
        source: Name of the checkpoint in error messages.
        prefix: See `without_prefixes`.

    Returns:
        Key -> array, in the order of the file.

    Raises:
        UserError: There is no such mapping, or several; or no key has the prefix.
    """
    node = checkpoint
    for _ in range(4):  # bounded: a malicious mapping can contain itself
        inner = _wrapped(node)
        if inner is None:
            break
        node = inner
    arrays = _arrays(node)
    if not arrays:
        raise UserError(
            f"{source}: holds no state dict but {_contents(node)}; allowed: a mapping"
            f" from names to tensors, itself or under one of {', '.join(_WRAPPERS)}"
        )
    return without_prefixes(arrays, source, prefix)


def without_prefixes(
    arrays: Mapping[str, T], source: str, prefix: str = ""
) -> dict[str, T]:
    """Removes what wrappers put in front of all keys, in any order and number.

    These are "module." (DataParallel), "_orig_mod." (torch.compile), and "model.",
    "net." and "network." (Lightning).

    Args:
        arrays: Key -> array.
        source: Name of the checkpoint in error messages.
        prefix: The prefix of the network, such as "student.", where the mapping holds
            more than one. Other entries are left out.

    Raises:
        UserError: No key has the prefix.
    """
    if prefix:
        start = prefix.rstrip(".") + "."
        chosen = _below(start, arrays) or _below(start, _unwrapped(arrays))
        if not chosen:
            starts = dict.fromkeys(f"{key.partition('.')[0]}." for key in arrays)
            raise UserError(
                f"{source}: prefix={prefix!r}: no key has it; keys start with "
                f"{', '.join([*starts][:8])}"
            )
        arrays = chosen
    return _unwrapped(arrays)


def _unwrapped(arrays: Mapping[str, T]) -> dict[str, T]:
    found = dict(arrays)
    for _ in range(_MAX_PREFIXES):
        common = (p for p in _PREFIXES if found and all(k.startswith(p) for k in found))
        prefix = next(common, None)
        if prefix is None:
            break
        found = _below(prefix, found)
    return found


def _below(prefix: str, arrays: Mapping[str, T]) -> dict[str, T]:
    return {
        k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)
    }


def _arrays(node: Any) -> dict[str, np.ndarray]:
    if not isinstance(node, Mapping):
        return {}
    return {
        name: value
        for name, value in node.items()
        if isinstance(name, str) and isinstance(value, np.ndarray)
    }


def _wrapped(node: Any) -> Any:
    """Returns the mapping in `node` that holds the state dict; None: `node` itself."""
    if not isinstance(node, Mapping):
        return None
    for name in _WRAPPERS:
        if isinstance(node.get(name), Mapping) and node[name]:
            return node[name]
    if _arrays(node):
        return None
    # Each once: a malicious mapping can hold one of many entries as many times.
    distinct = {id(value): value for value in node.values()}.values()
    candidates = [value for value in distinct if _arrays(value)]
    return candidates[0] if len(candidates) == 1 else None


def _contents(node: Any) -> str:
    if isinstance(node, Placeholder):
        return f"a whole object of class {node.name!r}: save its state_dict() instead"
    if not isinstance(node, Mapping):
        return f"a {type(node).__name__}"
    names = [repr(name)[:40] for name in node if isinstance(name, str)][:8]
    return f"a mapping with the keys {', '.join(names)}" if names else "no keys"


def _open(
    file: pathlib.Path,
) -> tuple[mmap.mmap | io.BytesIO, UInt8[np.ndarray, " size"]]:
    """Returns the file as a stream and as read-only bytes, memory-mapped."""
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            raise UnsupportedFileError(f"is empty; allowed: {ALLOWED}")
        try:
            stream = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            return stream, np.frombuffer(stream, np.uint8)
        except OSError:  # not supported by some network file systems
            content = opened.read()
            return io.BytesIO(content), np.frombuffer(content, np.uint8)


def _kind(data: UInt8[np.ndarray, " size"]) -> str:
    """Returns "zip" or "legacy"; raises with the kind of any other file."""
    head = data[:512].tobytes()
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith((b"\x80", b"\x8a")):  # PROTO, or LONG1 of the magic number
        return "legacy"
    known = {
        "a Git LFS pointer; fetch the real file with `git lfs pull`": (
            head.startswith(b"version https://git-lfs")
        ),
        "a web page, so the download went wrong": head.lstrip()[:1] == b"<",
        "an HDF5 file": head.startswith(b"\x89HDF"),
        "compressed with gzip; unpack it first": head.startswith(b"\x1f\x8b"),
        "a tar archive (torch before 0.1.10 or a packed file)": (
            head[257:262] == b"ustar"
        ),
        "safetensors; give it the suffix .safetensors": head[8:10] == b'{"',
    }
    what = next((name for name, matches in known.items() if matches), None)
    raise UnsupportedFileError(f"is {what or 'not a torch file'}; allowed: {ALLOWED}")


def _load_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        # safetensors.numpy lacks bfloat16.
        for name, entry in safetensors.deserialize(file.read_bytes()):
            dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
            if dtype is None:
                raise UnsupportedFileError(
                    f"has a tensor of {quotable(entry['dtype'])}; allowed:"
                    f" {', '.join(_SAFETENSORS_DTYPES)}"
                )
            array = np.frombuffer(entry["data"], DTYPES[dtype])
            array.flags.writeable = False
            arrays[name] = array.reshape(entry["shape"])
        return arrays
    except safetensors.SafetensorError as error:
        raise UnsupportedFileError(
            f"is not a readable safetensors file ({quotable(error)}); "
            f"allowed: {ALLOWED}"
        ) from error
