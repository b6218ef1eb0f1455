"""Builds tensors from the bytes of a PyTorch file, checking every size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import UInt8

_MAX_DIMS = 32  # supported by every NumPy version
_SPARE_BYTES = 2**24  # limit of all tensors: 16 times the file size plus this

DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn"),
        *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int8", "int16"),
        *("int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"),
        *("complex64", "complex128"),
    )
}
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}


class UnsupportedFileError(ValueError):
    """The reason why a file is rejected, for the message of `load_file`."""


class Placeholder:
    """Inert stand-in for an object of a class that this reader does not build.

    Attributes:
        name: Its name in the file, "module.name".
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Placeholder({self.name!r})"


class StorageType(Placeholder):
    """A storage class of torch, part of a storage's persistent id."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, dtype: np.dtype) -> None:
        super().__init__(name)
        self.dtype = dtype


class Storage(NamedTuple):
    """A flat array of elements.

    Attributes:
        raw: The bytes in native byte order; None in the first of the two passes over a
            legacy file, where they are not located yet.
        dtype: Type of the elements.
        numel: Number of elements.
    """

    raw: UInt8[np.ndarray, " n"] | None
    dtype: np.dtype
    numel: int


# Returns the bytes, in native byte order, of the storage with this key and dtype.
Lookup = Callable[[str, np.dtype], "np.ndarray | None"]


@dataclasses.dataclass
class Tensors:
    """Builds the tensors of one file, read-only views of its storages.

    Attributes:
        lookup: Finds the bytes of a storage.
        file_size: Size of the file in bytes, which bounds that of all tensors.
        swap: Whether the file's byte order is not the native one.
        storage_types: Key -> dtype of the storages so far.
        raws: Key -> bytes of the storages so far.
        total_bytes: Size of the tensors so far.
    """

    lookup: Lookup
    file_size: int
    swap: bool
    storage_types: dict[str, np.dtype] = dataclasses.field(default_factory=dict)
    raws: dict[str, np.ndarray | None] = dataclasses.field(default_factory=dict)
    total_bytes: int = 0

    def storage(
        self, cls: Any, key: Any, location: Any, numel: Any, view: Any = None
    ) -> Storage:
        """Returns the storage of a persistent id, of which the arguments are the parts.

        Raises:
            UnsupportedFileError: The id is malformed or exceeds the storage.
        """
        if not isinstance(cls, StorageType):
            name = getattr(cls, "name", type(cls).__name__)
            raise UnsupportedFileError(
                f"holds a storage of {name}; allowed: float, bfloat16, complex, integer"
                " and bool storages of torch, not quantized ones"
            )
        if not isinstance(key, str) or not is_size(numel):
            raise UnsupportedFileError("has a storage with an invalid key or size")
        if self.storage_types.setdefault(key, cls.dtype) != cls.dtype:
            raise UnsupportedFileError(f"gives storage {quotable(key)!r} two types")
        if key not in self.raws:
            self.raws[key] = self.lookup(key, cls.dtype)
        raw, width = self.raws[key], cls.dtype.itemsize
        if raw is not None and numel * width > raw.size:
            raise UnsupportedFileError(
                f"asks for {numel * width} bytes of storage {quotable(key)!r}, "
                f"which has {raw.size}"
            )
        if view is None:
            return Storage(raw, cls.dtype, numel)
        # torch until 0.4: (key of the view, its offset and size in elements)
        if not isinstance(view, tuple) or len(view) != 3 or not are_sizes(view[1:]):
            raise UnsupportedFileError("has an invalid view of a storage")
        _, offset, size = view
        if offset + size > numel:
            raise UnsupportedFileError(
                f"has a view that leaves storage {quotable(key)!r}"
            )
        part = raw if raw is None else raw[offset * width : (offset + size) * width]
        return Storage(part, cls.dtype, size)

    def build(self, args: tuple[Any, ...]) -> np.ndarray | None:
        """Builds the tensor of `_rebuild_tensor` and `_rebuild_tensor_v2`.

        Raises:
            UnsupportedFileError: It exceeds its storage, or its sizes are invalid.
        """
        if len(args) < 4 or not isinstance(args[0], Storage):
            raise UnsupportedFileError("has a tensor without a storage")
        return self._view(args[:4], args[0].dtype, args[6] if args[6:] else None)

    def build_v3(self, args: tuple[Any, ...]) -> np.ndarray | None:
        """Builds the tensor of `_rebuild_tensor_v3`, which has its own dtype.

        Raises:
            UnsupportedFileError: As `build`, or the dtype is unknown.
        """
        if len(args) < 7 or not isinstance(args[0], Storage):
            raise UnsupportedFileError("has a tensor without a storage")
        dtype = args[6]
        if not isinstance(dtype, np.dtype):
            name = getattr(dtype, "name", type(dtype).__name__)
            raise UnsupportedFileError(
                f"has a tensor of {name}; allowed: {', '.join(DTYPES)}"
            )
        if self.swap and dtype.itemsize > 1 and dtype != args[0].dtype:
            raise UnsupportedFileError(
                f"has {dtype} in the other byte order: not supported"
            )
        return self._view(args[:4], dtype, args[7] if args[7:] else None)

    def _view(
        self, args: tuple[Any, ...], dtype: np.dtype, metadata: Any
    ) -> np.ndarray | None:
        """Returns a read-only view of a storage; None while its bytes are unknown."""
        storage, offset, shape, strides = args
        if not (is_size(offset) and are_sizes(shape) and are_sizes(strides)):
            raise UnsupportedFileError(
                "has a tensor with an invalid shape, strides or offset"
            )
        if len(shape) != len(strides):
            raise UnsupportedFileError(
                "has a tensor with different numbers of strides and dimensions"
            )
        if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
            raise UnsupportedFileError(
                "has a lazily conjugated tensor; save resolve_conj() of it"
            )
        if storage.raw is None:
            return None
        available = storage.numel * storage.dtype.itemsize // dtype.itemsize
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if 0 not in shape and last >= available:
            raise UnsupportedFileError(
                f"has a tensor that reaches element {last} of a storage of {available}"
            )
        self.total_bytes += math.prod(shape) * dtype.itemsize
        if self.total_bytes > 16 * self.file_size + _SPARE_BYTES:
            raise UnsupportedFileError("has tensors over 16 times larger than the file")
        if 0 in shape:
            empty = np.empty(shape, dtype)
            empty.flags.writeable = False
            return empty
        steps = tuple(s * dtype.itemsize for s in strides)
        return np.ndarray(shape, dtype, storage.raw, offset * dtype.itemsize, steps)


def quotable(text: object) -> str:
    """Returns what a message may quote of a file: 160 printable characters."""
    words = " ".join(str(text)[:400].split())
    if not words.isprintable():
        words = "".join(c if c.isprintable() else "?" for c in words)
    return words[:160]


def is_size(value: Any) -> bool:
    """Returns whether a value is a valid number of elements."""
    return type(value) is int and 0 <= value < 2**62


def are_sizes(value: Any) -> bool:
    """Returns whether a value is a tuple of sizes, of at most 32."""
    return (
        isinstance(value, tuple)
        and len(value) <= _MAX_DIMS
        and all(is_size(v) for v in value)
    )
