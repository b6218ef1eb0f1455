"""Writes the files of this folder with torch: `python make.py` (torch 2.13).

Run it only to change the cases. Tensors are defined by formulas that the tests repeat,
so that no expected value passes through the reader under test. The bytes of the legacy
files differ between runs, as torch names their storages by memory address; their
contents do not.
"""

import collections
import datetime
import pathlib
import sys
import types
import warnings

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
DTYPES = (
    "float64 float32 float16 bfloat16 int8 int16 int32 int64 uint8 bool complex64"
    " complex128"
).split()
NEW_DTYPES = "uint16 uint32 uint64 float8_e4m3fn float8_e5m2".split()


def _save(name: str, value: object, **options: object) -> None:
    """Writes NAME_zip.pth and NAME_legacy.pth."""
    torch.save(value, HERE / f"{name}_zip.pth", **options)
    torch.save(
        value,
        HERE / f"{name}_legacy.pth",
        _use_new_zipfile_serialization=False,
        **options,
    )


def _views() -> dict[str, torch.Tensor]:
    """Returns tensors that share one storage of 0 to 23, and some unusual shapes."""
    base = torch.arange(24, dtype=torch.float32)
    return {
        "base": base,
        "matrix": base.view(4, 6),
        "transposed": base.view(4, 6).t(),
        "strided": base[3::4],
        "block": base.view(4, 6)[1:3, 2:5],
        "expanded": base[5:6].expand(3, 4),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "channels_last": torch.arange(24.0)
        .view(1, 2, 3, 4)
        .contiguous(memory_format=torch.channels_last),
    }


def _checkpoint() -> dict[str, object]:
    """Returns a training checkpoint like those of mmsegmentation and DataParallel."""
    package = types.ModuleType("vanished_package")

    class Config(dict):
        """A class that does not exist when the file is read."""

    Config.__module__, Config.__qualname__ = "vanished_package", "Config"
    package.Config = Config
    sys.modules["vanished_package"] = package
    config = Config(lr=0.1, crop=(480, 480))
    config.filename = "encnet.py"

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3, 4, 4)).sum().backward()
    state = collections.OrderedDict(
        (f"module.{name}", value.clone()) for name, value in model.state_dict().items()
    )
    state._metadata = model.state_dict()._metadata
    optimizer.step()
    return {
        "meta": {
            "config": config,
            "time": datetime.datetime(2020, 1, 2, 3, 4, 5),
            "history": np.arange(5.0),
            "best": np.float64(0.5),
            "shape": torch.Size([2, 3]),
            "device": torch.device("cpu"),
            "dtype": torch.float16,
            "classes": {"road", "sky"},
            "function": np.mean,
        },
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
    }


def _parameters() -> dict[str, object]:
    named = torch.nn.Parameter(torch.arange(3.0))
    named.note = "an attribute"
    tensor = torch.arange(4.0)
    tensor.note = "an attribute"
    return {
        "plain": torch.nn.Parameter(torch.arange(6.0).view(2, 3)),
        "frozen": torch.nn.Parameter(torch.arange(2.0), requires_grad=False),
        "named": named,
        "tensor": tensor,
    }


def main() -> None:
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # quantized tensors and TorchScript are deprecated
    values = torch.arange(6).view(2, 3)
    _save("dtypes", {name: values.to(getattr(torch, name)) for name in DTYPES})
    _save("new_dtypes", {name: values.to(getattr(torch, name)) for name in NEW_DTYPES})
    _save("views", _views())
    _save("checkpoint", _checkpoint())
    _save("parameters", _parameters())
    _save("protocol4", {"model": {"weight": torch.arange(4.0)}}, pickle_protocol=4)
    _save("module", torch.nn.Linear(2, 1))
    _save("quantized", torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8))
    _save("sparse", {"weight": torch.eye(2).to_sparse()})
    torch.jit.script(torch.nn.Linear(2, 1)).save(HERE / "torchscript.pt")


if __name__ == "__main__":
    main()
