"""Tables of the global names in a pickle that this reader gives a meaning.

Every other name becomes an inert `Placeholder`.
"""

from __future__ import annotations

import numpy as np

from encnet_jax.convert.torch_reader.tensors import (
    DTYPES,
    STORAGES,
    Placeholder,
    StorageType,
    UnsupportedFileError,
    quotable,
)

_MAX_NAME = 300  # characters of "module.name"
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
# Functions and classes that build values, with the method of `SafeUnpickler` that does.
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
# Tensors that would silently go missing as placeholders.
_UNREADABLE_TENSORS = (
    *("_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor"),
    *("_rebuild_nested_tensor", "_rebuild_meta_tensor_no_storage"),
    *("_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_numpy"),
    *("_rebuild_device_tensor_from_cpu_tensor", "_rebuild_xla_tensor"),
)


class Builder(Placeholder):
    """A name that builds a value.

    Attributes:
        method: The method of `SafeUnpickler` that does; empty for unsupported tensors.
    """

    __slots__ = ("method",)

    def __init__(self, name: str, method: str) -> None:
        super().__init__(name)
        self.method = method


def resolve(module: str, name: str) -> Placeholder | np.dtype:
    """Returns the value that stands for a class or function named in a file."""
    if len(module) + len(name) > _MAX_NAME:
        raise UnsupportedFileError(f"names a class with over {_MAX_NAME} characters")
    full = quotable(f"{module}.{name}")
    if method := _BUILDERS.get((module, name)):
        return Builder(full, method)
    if module == "torch._utils" and name in _UNREADABLE_TENSORS:
        return Builder(full, "")
    if module in _STORAGE_MODULES and name in STORAGES:
        return StorageType(full, DTYPES[STORAGES[name]])
    if module == "torch" and name in DTYPES:
        return DTYPES[name]
    return Placeholder(full)
