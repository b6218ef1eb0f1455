"""A safe unpickler for PyTorch files, which never executes code from the file.

A pickle is a program that may import and call any function. Here it runs on a small
stack machine over a closed set of values. Names in the file are only looked up in the
tables of `global_names.py`; every other name becomes a `Placeholder`, which ignores
whatever the file does to it. No import, no `getattr` and no call depends on a name in
the file.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from collections.abc import Callable
from typing import IO, Any, cast

import numpy as np

from encnet_jax.convert.torch_reader.global_names import Builder, resolve
from encnet_jax.convert.torch_reader.tensors import (
    Placeholder,
    Tensors,
    UnsupportedFileError,
    are_sizes,
)

# Bounds the cost of one file. A ResNet-101 with its optimizer takes 60,000 steps.
_MAX_STEPS = 3_000_000  # pickle instructions and copied items

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


class SafeUnpickler:
    """Runs pickles over a closed set of values.

    Methods `_op_*` are the instructions, by their names in `pickletools`; those
    without a method (the extension registry, text persistent ids, out-of-band buffers)
    are rejected. Methods `_build_*` are those that `global_names.py` refers to.

    Never format, compare or hash a value from the file unless its type is known to be
    flat: nested tuples take exponential time.

    Args:
        tensors: Builds the tensors; shared by all pickles of a file.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.steps = 0

    def run(self, stream: mmap.mmap | io.BytesIO) -> Any:
        """Unpickles the object at the current position of the stream."""
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for opcode, arg, _ in pickletools.genops(cast(IO[bytes], stream)):
            self._spend(1)
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _LITERALS:
                self.stack.append(arg)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name not in ("PROTO", "FRAME"):
                # The name is from the table of pickletools, not chosen by the file.
                method = getattr(self, f"_op_{name.lower()}", None)
                if method is None:
                    raise UnsupportedFileError(
                        f"uses the pickle instruction {name}: not allowed"
                    )
                method(arg)
        raise UnsupportedFileError("ends inside a pickle; it is truncated")

    def _spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > _MAX_STEPS:
            raise UnsupportedFileError(
                f"takes more than {_MAX_STEPS} pickle instructions"
            )

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
        if arg >= 2**32:  # with equal hash values, inserts would take quadratic time
            raise UnsupportedFileError("has a memo index beyond 32 bits")
        self.memo[arg] = self.stack[-1]

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, arg: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_list(self, arg: None) -> None:
        items = self._pop_mark()  # also restores the outer stack
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
            raise UnsupportedFileError(
                f"appends to a {type(target).__name__}: not allowed"
            )

    def _op_additems(self, arg: None) -> None:
        items = self._pop_mark()
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, items))
        elif not isinstance(target, Placeholder):
            raise UnsupportedFileError(
                f"adds to a {type(target).__name__}: not allowed"
            )

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
            raise UnsupportedFileError(
                f"sets items of a {type(target).__name__}: not allowed"
            )

    def _op_build(self, arg: None) -> None:
        # Attributes (a state dict's _metadata, an object's __dict__) are dropped.
        self.stack.pop()

    def _op_global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self.stack.append(resolve(module, name))

    def _op_stack_global(self, arg: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise UnsupportedFileError("names a class by something other than strings")
        self.stack.append(resolve(module, name))

    def _op_inst(self, arg: str) -> None:
        self._pop_mark()
        module, _, name = arg.partition(" ")
        self.stack.append(Placeholder(resolve(module, name).name))

    def _op_obj(self, arg: None) -> None:
        cls = self._pop_mark()[0]
        self.stack.append(Placeholder(getattr(cls, "name", "unknown")))

    def _op_reduce(self, arg: None) -> None:
        args = self.stack.pop()
        self.stack.append(self._call(self.stack.pop(), args))

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, arg: None) -> None:
        self.stack.pop()  # keyword arguments, which no builder takes
        self._op_reduce(arg)

    def _call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Placeholder):
            raise UnsupportedFileError(
                f"calls a {type(function).__name__}: not allowed"
            )
        if not isinstance(function, Builder):
            return Placeholder(function.name)
        if not function.method:
            raise UnsupportedFileError(
                f"holds a tensor of {function.name}, which cannot be read; allowed:"
                " dense tensors that are not quantized"
            )
        if not isinstance(args, tuple):
            raise UnsupportedFileError(f"gives {function.name} no tuple of arguments")
        if function.method == "_build_tensor":
            return self.tensors.build(args)
        if function.method == "_build_tensor_v3":
            return self.tensors.build_v3(args)
        # The method is from a table, not chosen by the file.
        return getattr(self, function.method)(args)

    def _op_binpersid(self, arg: None) -> None:
        pid = self.stack.pop()
        kind = pid[0] if isinstance(pid, tuple) and pid else None
        if isinstance(kind, str) and kind == "module" and len(pid) > 1:
            self.stack.append(pid[1])  # a class, followed by its source text
        elif isinstance(kind, str) and kind == "storage" and len(pid) in (5, 6):
            self.stack.append(self.tensors.storage(*pid[1:]))
        else:
            raise UnsupportedFileError("refers to something other than a torch storage")

    def _build_dict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        pairs = args[0] if args else []  # Python 2 passes the items to the constructor
        if not isinstance(pairs, list):
            raise UnsupportedFileError("builds an OrderedDict from no list of pairs")
        self._spend(len(pairs))
        if not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            raise UnsupportedFileError("builds an OrderedDict from no list of pairs")
        return {_key(name): value for name, value in pairs}

    def _build_defaultdict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        return {}  # without its factory; the items follow as instructions

    def _build_size(self, args: tuple[Any, ...]) -> tuple[int, ...]:
        if len(args) != 1 or not are_sizes(args[0]):
            raise UnsupportedFileError("has a torch.Size of something other than sizes")
        return args[0]

    def _build_parameter(self, args: tuple[Any, ...]) -> Any:
        if not args or not isinstance(args[0], np.ndarray | Placeholder | None):
            raise UnsupportedFileError("has a parameter without a tensor")
        return args[0]

    def _build_from_type(self, args: tuple[Any, ...]) -> Any:
        # A tensor of a subclass, or with attributes: (function, class, args, state).
        if len(args) != 4 or getattr(args[0], "method", None) == "_build_from_type":
            raise UnsupportedFileError(
                "has a tensor subclass that is built in an unknown way"
            )
        return self._call(args[0], args[2])


def _key(value: Any) -> Any:
    """Returns value if it can safely be a key of a mapping, else a placeholder.

    Nested tuples hash in exponential time, and long integers or tuples of integers can
    be crafted to collide; neither occurs in checkpoints.
    """
    if value is None or isinstance(value, str | bytes | float | Placeholder):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return value
    if isinstance(value, tuple) and len(value) <= 16:
        if all(isinstance(v, str) for v in value):
            return value
    return Placeholder(type(value).__name__)
