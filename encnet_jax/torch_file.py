"""PyTorch checkpoint files read without torch, and without running anything in them.

A `.pth` file is a pickle: a program that may name any function and call it. Here
that program runs on a small stack machine of our own, over a closed set of values.
Names in the file are only looked up in the tables below; every other name becomes a
`Placeholder`, which swallows whatever the file does to it. No import, no `getattr`
and no call ever depends on a name in the file, so there is nothing to break out of.

Sizes are checked against the bytes that the file really holds before any array is
made, and arrays are read-only views of the memory-mapped file.

Both formats of torch.save are read: the zip archive (torch 1.6 and later) and the
older one, a row of pickles with the raw storages behind them (2018 to 2020).
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import os
import pathlib
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from encnet_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ALLOWED = "a file of torch.save (zip or legacy format) or .safetensors"

# What one file may cost. Real checkpoints stay far below: a ResNet-101 with its
# optimizer takes about 60,000 instructions.
_MAX_STEPS = 3_000_000  # pickle instructions and copied items
_MAX_NAME = 300  # characters of "module.name"
_MAX_DIMS = 32  # what every NumPy version holds
_SPARE_BYTES = 2**24  # all tensors together: 16 times the file and this

_DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "bool": np.dtype(np.bool_),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
}
_STORAGES = {
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
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
# Names that stand for something to build, with the method of `_Machine` that does.
_BUILDERS = {
    ("collections", "OrderedDict"): "_build_dict",
    ("collections", "defaultdict"): "_build_defaultdict",
    ("torch", "Size"): "_build_size",
    ("torch._utils", "_rebuild_tensor"): "_build_tensor",
    ("torch._utils", "_rebuild_tensor_v2"): "_build_tensor",
    ("torch._utils", "_rebuild_tensor_v3"): "_build_tensor_v3",
    ("torch._utils", "_rebuild_parameter"): "_build_parameter",
    ("torch._utils", "_rebuild_parameter_with_state"): "_build_parameter",
    ("torch.nn.parameter", "Parameter"): "_build_parameter",
    ("torch.nn", "Parameter"): "_build_parameter",
    ("torch._tensor", "_rebuild_from_type_v2"): "_build_from_type",
}
# Tensors that would silently go missing if they became placeholders.
_UNREADABLE_TENSORS = (
    "_rebuild_qtensor",
    "_rebuild_sparse_tensor",
    "_rebuild_sparse_csr_tensor",
    "_rebuild_nested_tensor",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_wrapper_subclass",
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_device_tensor_from_cpu_tensor",
    "_rebuild_xla_tensor",
)
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
)
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile

# What parsing damaged bytes raises; anything else would be a bug of this module.
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
    DeprecationWarning,  # of odd escapes in strings, where warnings are errors
)


class Placeholder:
    """Stands for an object of a class that this reader does not build.

    It holds no state and does nothing.

    Attributes:
        name: what the file calls it, "module.name".
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Placeholder({self.name!r})"


class _Builder(Placeholder):
    """A name of `_BUILDERS`, or of a tensor that cannot be built."""

    __slots__ = ("method",)

    def __init__(self, name: str, method: str) -> None:
        super().__init__(name)
        self.method = method


class _StorageType(Placeholder):
    """A storage class of torch, as it occurs in a storage's persistent id."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, dtype: np.dtype) -> None:
        super().__init__(name)
        self.dtype = dtype


class _Storage(NamedTuple):
    """A flat run of numbers; raw is uint8 in this machine's byte order.

    raw is None in the first of the two passes over a legacy file, where the bytes
    are not yet located.
    """

    raw: np.ndarray | None
    dtype: np.dtype
    numel: int


class _Refusal(ValueError):
    """Carries a reason, in words for the user, to `load_file`."""


# The bytes of the storage with this key and dtype: uint8, native byte order.
_Lookup = Callable[[str, np.dtype], "np.ndarray | None"]


def load_file(path: str | os.PathLike[str]) -> Any:
    """Returns what a PyTorch checkpoint holds, with NumPy arrays for its tensors.

    Mappings come as dict, other containers as list, tuple and (from pickle protocol
    4) set; parameters as plain arrays; torch.dtype as np.dtype; objects of all other
    classes (optimizers, configs, NumPy objects, dates) as `Placeholder`. Attributes
    set on containers are left out.

    Args:
        path: a file of torch.save, or a `.safetensors` file.

    Returns:
        The nested structure. Arrays from torch.save are read-only views of the
        memory-mapped file (of a copy, where its byte order is not this machine's),
        so the file must not be rewritten while they are in use; copy what has to
        outlive it. Tensors that shared a storage share it here, and strides are
        kept. Arrays from `.safetensors` are read-only copies.

    Raises:
        UserError: if the file is missing, truncated, of another kind, or asks for
            something that is not allowed.
    """
    file = pathlib.Path(path)
    try:
        if file.exists() and not file.is_file():
            raise _Refusal(f"is not a file; allowed: {_ALLOWED}")
        if file.suffix == ".safetensors":
            return _load_safetensors(file)
        stream, data = _open(file)
        if _kind(data) == "zip":
            return _load_zip(file, data)
        return _load_legacy(stream, data)
    except UserError:
        raise
    except _Refusal as error:
        raise UserError(f"{file}: {error}") from error
    except _MALFORMED as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or f"{type(error).__name__}: {error}"
        raise UserError(
            f"{file}: cannot be read ({_line(reason)}); it is missing, truncated or"
            f" damaged; allowed: {_ALLOWED}"
        ) from error


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint file by name: `load_file`, `state_dict_of`.

    Args:
        path: a file of torch.save, or a `.safetensors` file.

    Returns:
        Arrays by parameter name, in the file's order; read-only as `load_file` says.

    Raises:
        UserError: if the file cannot be read or holds no state dict.
    """
    return state_dict_of(load_file(path), source=str(path))


def state_dict_of(
    checkpoint: Any, source: str = "the checkpoint"
) -> dict[str, np.ndarray]:
    """Returns the mapping from parameter names to arrays inside a checkpoint.

    That is what lies under "state_dict", "model", "net" and the like, else the top
    level itself, else the only mapping in it that holds arrays. A prefix "module."
    (DataParallel) or "_orig_mod." (torch.compile) common to all names is removed.
    Entries that are no arrays are left out.

    Args:
        checkpoint: what `load_file` returned.
        source: what error messages call the checkpoint.

    Returns:
        Arrays by parameter name, in the file's order.

    Raises:
        UserError: if there is no such mapping, or more than one candidate.
    """
    node = checkpoint
    for _ in range(4):  # bounded: a hostile mapping can contain itself
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
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): a for name, a in arrays.items()}
    return arrays


def _arrays(node: Any) -> dict[str, np.ndarray]:
    if not isinstance(node, Mapping):
        return {}
    return {
        name: value
        for name, value in node.items()
        if isinstance(name, str) and isinstance(value, np.ndarray)
    }


def _wrapped(node: Any) -> Any:
    """Returns the mapping inside node that holds the state dict; None: node itself."""
    if not isinstance(node, Mapping):
        return None
    for name in _WRAPPERS:
        if isinstance(node.get(name), Mapping) and node[name]:
            return node[name]
    if _arrays(node):
        return None
    candidates = [value for value in node.values() if _arrays(value)]
    return candidates[0] if len(candidates) == 1 else None


def _contents(node: Any) -> str:
    if isinstance(node, Placeholder):
        return f"a whole object of class {node.name!r}: save its state_dict() instead"
    if not isinstance(node, Mapping):
        return f"a {type(node).__name__}"
    names = [repr(name)[:40] for name in node if isinstance(name, str)][:8]
    return f"a mapping with the entries {', '.join(names)}" if names else "no names"


def _line(text: object) -> str:
    """Returns text as one printable line of at most 160 characters."""
    words = " ".join(str(text)[:400].split())
    if not words.isprintable():
        words = "".join(c if c.isprintable() else "?" for c in words)
    return words[:160]


def _open(file: pathlib.Path) -> tuple[mmap.mmap | io.BytesIO, np.ndarray]:
    """Returns the file as a stream and as read-only uint8 [size], without copying."""
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            raise _Refusal(f"is empty; allowed: {_ALLOWED}")
        try:
            stream = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            return stream, np.frombuffer(stream, np.uint8)
        except OSError:  # some network file systems cannot map
            content = opened.read()
            return io.BytesIO(content), np.frombuffer(content, np.uint8)


def _kind(data: np.ndarray) -> str:
    """Returns "zip" or "legacy"; names what else the file is."""
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
    raise _Refusal(f"is {what or 'not a torch file'}; allowed: {_ALLOWED}")


def _load_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
    except ImportError as error:
        raise _Refusal(
            "needs the package safetensors: python -m pip install safetensors"
        ) from error
    arrays = {}
    try:
        # Not safetensors.numpy, which knows no bfloat16.
        for name, entry in safetensors.deserialize(file.read_bytes()):
            dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
            if dtype is None:
                raise _Refusal(
                    f"has a tensor of {_line(entry['dtype'])}; allowed:"
                    f" {', '.join(_SAFETENSORS_DTYPES)}"
                )
            array = np.frombuffer(entry["data"], _DTYPES[dtype])
            array.flags.writeable = False
            arrays[name] = array.reshape(entry["shape"])
        return arrays
    except safetensors.SafetensorError as error:
        raise _Refusal(
            f"is not a readable safetensors file ({_line(error)}); allowed: {_ALLOWED}"
        ) from error


def _load_zip(file: pathlib.Path, data: np.ndarray) -> Any:
    """Returns the object of a zip archive; its storages are members of their own."""
    members = dict(_zip_members(file, data))
    roots = [name for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise _Refusal(f"is a zip archive, but not of torch.save; allowed: {_ALLOWED}")
    root = roots[0].removesuffix("data.pkl")
    order = members.get(root + "byteorder", data[:0]).tobytes()
    if order not in (b"", b"little", b"big"):
        raise _Refusal("has an unknown byte order; allowed: little, big")
    swap = (order or b"little").decode() != sys.byteorder

    def lookup(key: str, dtype: np.dtype) -> np.ndarray:
        if (raw := members.get(f"{root}data/{key}")) is None:
            raise _Refusal(f"lacks storage {_line(key)!r}; it is damaged")
        return _native(raw, dtype, swap)

    stream = io.BytesIO(members[roots[0]].tobytes())
    return _Machine(lookup, data.size, swap).run(stream)


def _zip_members(
    file: pathlib.Path, data: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and bytes, uint8 views of data, of every member of the archive.

    Checksums are left unread, as torch does: they may be switched off in torch.save.
    """
    seen: set[str] = set()
    total = 0
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if any(info.filename.endswith("/constants.pkl") for info in infos):
            raise _Refusal(
                "is a TorchScript archive, which holds code; allowed:"
                " torch.save(model.state_dict(), FILE)"
            )
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise _Refusal(
                    "has compressed or encrypted members; allowed: stored ones, as"
                    " torch.save writes them"
                )
            start = info.header_offset
            header = data[start : start + 30].tobytes() if start >= 0 else b""
            if header[:4] != b"PK\x03\x04" or len(header) < 30:
                raise _Refusal("has a damaged zip directory")
            start += 30 + sum(struct.unpack("<HH", header[26:]))
            total += info.file_size
            # Overlapping members would let a small file stand for a large one.
            if start + info.file_size > data.size or total > data.size:
                raise _Refusal("has members larger than the file; it is truncated")
            if info.filename in seen:
                raise _Refusal("has two members of one name")
            seen.add(info.filename)
            yield info.filename, data[start : start + info.file_size]


def _load_legacy(stream: mmap.mmap | io.BytesIO, data: np.ndarray) -> Any:
    """Returns the object of a legacy file.

    The object's pickle precedes the list of storages and their bytes, and only the
    pickle tells their types, so it is run twice: to learn the types, then to build.
    """

    def run(lookup: _Lookup = lambda key, dtype: None) -> tuple[Any, _Machine]:
        machine = _Machine(lookup, data.size, swap=False)
        return machine.run(stream), machine

    magic, _ = run()
    if magic != _LEGACY_MAGIC:
        raise _Refusal(f"is a pickle, but not of torch.save; allowed: {_ALLOWED}")
    protocol, _ = run()
    if protocol != _LEGACY_PROTOCOL:
        raise _Refusal(f"has an unknown protocol; allowed: {_LEGACY_PROTOCOL}")
    info, _ = run()
    if not isinstance(info, dict) or not isinstance(info.get("little_endian"), bool):
        raise _Refusal("does not tell its byte order; it is damaged")
    order = "little" if info["little_endian"] else "big"

    start = stream.tell()
    _, machine = run()
    keys, _ = run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _Refusal("has no list of storages; it is damaged")
    storages = {}
    position = stream.tell()
    for key in keys:
        dtype = machine.storage_types.get(key)
        if dtype is None or key in storages:
            raise _Refusal(f"lists storage {_line(key)!r} twice or never uses it")
        numel = int.from_bytes(data[position : position + 8].tobytes(), order)
        end = position + 8 + numel * dtype.itemsize
        if position + 8 > data.size or end > data.size:
            raise _Refusal("ends before its last storage does; it is truncated")
        raw = data[position + 8 : end]
        storages[key] = _native(raw, dtype, order != sys.byteorder)
        position = end

    def lookup(key: str, dtype: np.dtype) -> np.ndarray:
        if key not in storages:
            raise _Refusal(f"lacks storage {_line(key)!r}; it is damaged")
        return storages[key]

    stream.seek(start)
    return run(lookup)[0]


def _native(raw: np.ndarray, dtype: np.dtype, swap: bool) -> np.ndarray:
    """Returns the bytes of a storage, uint8 [n], in this machine's byte order."""
    width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    if not swap or width == 1:
        return raw
    swapped = raw[: raw.size // width * width].view(f"u{width}").byteswap()
    swapped.flags.writeable = False
    return swapped.view(np.uint8)


@dataclasses.dataclass
class _Machine:
    """Runs one pickle over a closed set of values.

    Methods `_op_*` are the instructions, by their names in `pickletools`; those
    without a method (the extension registry, text persistent ids, buffers outside
    the pickle) are refused. Methods `_build_*` are what `_BUILDERS` names.

    Never format, compare or hash a value taken from the file unless its type is
    known to be flat: nested tuples take exponential time.

    Attributes:
        lookup: finds the bytes of a storage.
        file_size: bytes in the file, which bound what tensors may hold.
        swap: whether the file's byte order differs from this machine's.
        storage_types: dtype of every storage met, by key.
    """

    lookup: _Lookup
    file_size: int
    swap: bool
    storage_types: dict[str, np.dtype] = dataclasses.field(default_factory=dict)
    raws: dict[str, np.ndarray | None] = dataclasses.field(default_factory=dict)
    steps: int = 0
    tensor_bytes: int = 0

    def run(self, stream: mmap.mmap | io.BytesIO) -> Any:
        """Returns the object of the pickle that starts at the stream's position."""
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for opcode, arg, _ in pickletools.genops(stream):
            self._spend(1)
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _LITERALS:
                self.stack.append(arg)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name not in ("PROTO", "FRAME"):
                # The name is one of pickletools' own table, not the file's choice.
                method = getattr(self, f"_op_{name.lower()}", None)
                if method is None:
                    raise _Refusal(f"uses the pickle instruction {name}: not allowed")
                method(arg)
        raise _Refusal("ends inside a pickle; it is truncated")

    def _spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > _MAX_STEPS:
            raise _Refusal(f"takes more than {_MAX_STEPS} pickle instructions")

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _op_mark(self, arg: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def _op_pop(self, arg: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def _op_pop_mark(self, arg: None) -> None:
        self._pop_mark()

    def _op_dup(self, arg: None) -> None:
        self.stack.append(self.stack[-1])

    def _op_get(self, arg: int) -> None:
        self.stack.append(self.memo[arg])

    _op_binget = _op_long_binget = _op_get

    def _op_put(self, arg: int) -> None:
        if arg >= 2**32:  # chosen to share a hash value, they would fill memo slowly
            raise _Refusal("has a memo index beyond 32 bits")
        self.memo[arg] = self.stack[-1]

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, arg: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_list(self, arg: None) -> None:
        items = self._pop_mark()  # also puts the outer stack back
        self.stack.append(items)

    def _op_tuple(self, arg: None) -> None:
        items = self._pop_mark()
        self.stack.append(tuple(items))

    def _op_tuple1(self, arg: None) -> None:
        self.stack.append((self.stack.pop(),))

    def _op_tuple2(self, arg: None) -> None:
        last = self.stack.pop()
        self.stack.append((self.stack.pop(), last))

    def _op_tuple3(self, arg: None) -> None:
        last, middle = self.stack.pop(), self.stack.pop()
        self.stack.append((self.stack.pop(), middle, last))

    def _op_dict(self, arg: None) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._set_items(items)

    def _op_frozenset(self, arg: None) -> None:
        items = self._pop_mark()
        self.stack.append(frozenset(map(_key, items)))

    def _op_append(self, arg: None) -> None:
        self._extend([self.stack.pop()])

    def _op_appends(self, arg: None) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Placeholder):
            raise _Refusal(f"appends to a {type(target).__name__}: not allowed")

    def _op_additems(self, arg: None) -> None:
        items = self._pop_mark()
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, items))
        elif not isinstance(target, Placeholder):
            raise _Refusal(f"adds to a {type(target).__name__}: not allowed")

    def _op_setitem(self, arg: None) -> None:
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def _op_setitems(self, arg: None) -> None:
        self._set_items(self._pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for name, value in zip(items[::2], items[1::2], strict=True):
                target[_key(name)] = value
        elif not isinstance(target, Placeholder):
            raise _Refusal(f"sets items of a {type(target).__name__}: not allowed")

    def _op_build(self, arg: None) -> None:
        # Attributes (a state dict's _metadata, an object's __dict__) are dropped.
        self.stack.pop()

    def _op_global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self.stack.append(_resolve(module, name))

    def _op_stack_global(self, arg: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise _Refusal("names a class by something other than strings")
        self.stack.append(_resolve(module, name))

    def _op_inst(self, arg: str) -> None:
        self._pop_mark()
        module, _, name = arg.partition(" ")
        self.stack.append(Placeholder(_resolve(module, name).name))

    def _op_obj(self, arg: None) -> None:
        cls = self._pop_mark()[0]
        self.stack.append(Placeholder(getattr(cls, "name", "unknown")))

    def _op_reduce(self, arg: None) -> None:
        args = self.stack.pop()
        self.stack.append(self._call(self.stack.pop(), args))

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, arg: None) -> None:
        self.stack.pop()  # keyword arguments, which no builder here takes
        self._op_reduce(arg)

    def _call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Placeholder):
            raise _Refusal(f"calls a {type(function).__name__}: not allowed")
        if not isinstance(function, _Builder):
            return Placeholder(function.name)
        if not function.method:
            raise _Refusal(
                f"holds a tensor of {function.name}, which cannot be read; allowed:"
                " dense tensors that are not quantised"
            )
        if not isinstance(args, tuple):
            raise _Refusal(f"gives {function.name} no tuple of arguments")
        # A value of `_BUILDERS`, chosen here and not by the file.
        return getattr(self, function.method)(args)

    def _op_binpersid(self, arg: None) -> None:
        pid = self.stack.pop()
        kind = pid[0] if isinstance(pid, tuple) and pid else None
        if isinstance(kind, str) and kind == "module" and len(pid) > 1:
            # a class with its source text
            self.stack.append(pid[1])
        elif isinstance(kind, str) and kind == "storage" and len(pid) in (5, 6):
            self.stack.append(self._storage(*pid[1:]))
        else:
            raise _Refusal("refers to something other than a storage of torch")

    def _storage(
        self, cls: Any, key: Any, location: Any, numel: Any, view: Any = None
    ) -> _Storage:
        if not isinstance(cls, _StorageType):
            name = getattr(cls, "name", type(cls).__name__)
            raise _Refusal(
                f"holds a storage of {name}; allowed: float, bfloat16, complex, integer"
                " and bool storages of torch, not quantised ones"
            )
        if not isinstance(key, str) or not _is_size(numel):
            raise _Refusal("has a storage with a strange key or size")
        if self.storage_types.setdefault(key, cls.dtype) != cls.dtype:
            raise _Refusal(f"gives storage {_line(key)!r} two types")
        if key not in self.raws:
            self.raws[key] = self.lookup(key, cls.dtype)
        raw, width = self.raws[key], cls.dtype.itemsize
        if raw is not None and numel * width > raw.size:
            raise _Refusal(
                f"asks for {numel * width} bytes of storage {_line(key)!r}, which has"
                f" {raw.size}"
            )
        if view is None:
            return _Storage(raw, cls.dtype, numel)
        # torch until 0.4: (key of the view, its offset and size in elements)
        if not isinstance(view, tuple) or len(view) != 3 or not _are_sizes(view[1:]):
            raise _Refusal("has a strange view of a storage")
        _, offset, size = view
        if offset + size > numel:
            raise _Refusal(f"has a view that leaves storage {_line(key)!r}")
        part = raw if raw is None else raw[offset * width : (offset + size) * width]
        return _Storage(part, cls.dtype, size)

    def _build_dict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        pairs = args[0] if args else []  # Python 2 gives the items to the constructor
        if not isinstance(pairs, list):
            raise _Refusal("builds an OrderedDict from no list of pairs")
        self._spend(len(pairs))
        if not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            raise _Refusal("builds an OrderedDict from no list of pairs")
        return {_key(name): value for name, value in pairs}

    def _build_defaultdict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        return {}  # its factory stays out; its items follow as instructions

    def _build_size(self, args: tuple[Any, ...]) -> tuple[int, ...]:
        if len(args) != 1 or not _are_sizes(args[0]):
            raise _Refusal("has a torch.Size of something other than sizes")
        return args[0]

    def _build_parameter(self, args: tuple[Any, ...]) -> Any:
        if not args or not isinstance(args[0], np.ndarray | Placeholder | None):
            raise _Refusal("has a parameter without a tensor")
        return args[0]

    def _build_from_type(self, args: tuple[Any, ...]) -> Any:
        # A tensor of a subclass, or with attributes: (function, class, args, state).
        if len(args) != 4 or getattr(args[0], "method", None) == "_build_from_type":
            raise _Refusal("has a tensor subclass that is built in a strange way")
        return self._call(args[0], args[2])

    def _build_tensor(self, args: tuple[Any, ...]) -> np.ndarray | None:
        if len(args) < 4 or not isinstance(args[0], _Storage):
            raise _Refusal("has a tensor without a storage")
        return self._tensor(args[:4], args[0].dtype, args[6] if args[6:] else None)

    def _build_tensor_v3(self, args: tuple[Any, ...]) -> np.ndarray | None:
        if len(args) < 7 or not isinstance(args[0], _Storage):
            raise _Refusal("has a tensor without a storage")
        dtype = args[6]
        if not isinstance(dtype, np.dtype):
            name = getattr(dtype, "name", type(dtype).__name__)
            raise _Refusal(f"has a tensor of {name}; allowed: {', '.join(_DTYPES)}")
        if self.swap and dtype.itemsize > 1 and dtype != args[0].dtype:
            raise _Refusal(f"has {dtype} in the other byte order: not supported")
        return self._tensor(args[:4], dtype, args[7] if args[7:] else None)

    def _tensor(
        self, args: tuple[Any, ...], dtype: np.dtype, metadata: Any
    ) -> np.ndarray | None:
        """Returns a read-only view of a storage; None while its bytes are unknown."""
        storage, offset, shape, strides = args
        if not (_is_size(offset) and _are_sizes(shape) and _are_sizes(strides)):
            raise _Refusal("has a tensor whose shape, strides or offset are no sizes")
        if len(shape) != len(strides):
            raise _Refusal("has a tensor with more strides than dimensions, or fewer")
        if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
            raise _Refusal("has a lazily conjugated tensor; save resolve_conj() of it")
        if storage.raw is None:
            return None
        available = storage.numel * storage.dtype.itemsize // dtype.itemsize
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if 0 not in shape and last >= available:
            raise _Refusal(
                f"has a tensor that reaches element {last} of a storage of {available}"
            )
        self.tensor_bytes += math.prod(shape) * dtype.itemsize
        if self.tensor_bytes > 16 * self.file_size + _SPARE_BYTES:
            raise _Refusal("has tensors over 16 times larger than the file")
        if 0 in shape:
            empty = np.empty(shape, dtype)
            empty.flags.writeable = False
            return empty
        steps = tuple(s * dtype.itemsize for s in strides)
        return np.ndarray(shape, dtype, storage.raw, offset * dtype.itemsize, steps)


_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING"
    " SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE"
    " SHORT_BINUNICODE BINUNICODE8".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}


def _resolve(module: str, name: str) -> Any:
    """Returns what a class or function named in the file stands for here."""
    if len(module) + len(name) > _MAX_NAME:
        raise _Refusal(f"names a class with over {_MAX_NAME} characters")
    full = _line(f"{module}.{name}")
    if method := _BUILDERS.get((module, name)):
        return _Builder(full, method)
    if module == "torch._utils" and name in _UNREADABLE_TENSORS:
        return _Builder(full, "")
    if module in _STORAGE_MODULES and name in _STORAGES:
        return _StorageType(full, _DTYPES[_STORAGES[name]])
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    return Placeholder(full)


def _key(value: Any) -> Any:
    """Returns value if it is fit for a key of a mapping, else a placeholder.

    Nested tuples hash in exponential time, and long integers or tuples of integers
    can be chosen to share one hash value; neither occurs in checkpoints.
    """
    if value is None or isinstance(value, str | bytes | float | Placeholder):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return value
    if isinstance(value, tuple) and len(value) <= 16:
        if all(isinstance(v, str) for v in value):
            return value
    return Placeholder(type(value).__name__)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= _MAX_DIMS
        and all(_is_size(v) for v in value)
    )
