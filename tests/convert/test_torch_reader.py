"""Tests of encnet_jax.convert.torch_reader: what it reads, rejects, never executes.

The files under torch_files/ were written by torch (see make.py there). Malicious files
are assembled here, instruction by instruction.
"""

import importlib
import json
import pathlib
import pickle
import random
import struct
import sys
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest

from encnet_jax.convert.torch_reader import file as torch_file
from encnet_jax.convert.torch_reader.file import Placeholder
from encnet_jax.errors import UserError

FILES = pathlib.Path(__file__).parents[1] / "torch_files"
FORMATS = ("zip", "legacy")
MAGIC = 0x1950A86A20F9469CFC6C
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def string(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    return b"I" + str(value).encode() + b"\n"


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(numel: int, key: str = "0", view: bytes = b"") -> bytes:
    """Pushes a float32 storage on the stack; `view` is for the legacy format."""
    head = b"(" + string("storage") + b"ctorch\nFloatStorage\n" + string(key)
    return head + string("cpu") + integer(numel) + view + b"tQ"


def tensor(offset: int, shape: bytes, strides: bytes, numel: int = 4) -> bytes:
    args = storage(numel) + integer(offset) + shape + strides
    return TENSOR + b"(" + args + b"\x89}tR"


def write_zip(
    path: pathlib.Path, program: bytes, data: bytes = bytes(16), **members: bytes
) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("root/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("root/data/0", data)
        for name, content in members.items():
            archive.writestr(f"root/{name}", content)
    return path


def write_legacy(
    path: pathlib.Path,
    program: bytes,
    storages: dict[str, bytes],
    numel: int = 4,
    order: str = "little",
) -> pathlib.Path:
    info = {"protocol_version": 1001, "little_endian": order == "little"}
    heads = [pickle.dumps(head, protocol=2) for head in (MAGIC, 1001, info)]
    keys = pickle.dumps(list(storages), protocol=2)
    bodies = [numel.to_bytes(8, order) + content for content in storages.values()]
    path.write_bytes(b"".join([*heads, b"\x80\x02" + program + b".", keys, *bodies]))
    return path


def load_case(name: str, form: str) -> dict:
    return torch_file.load_file(FILES / f"{name}_{form}.pth")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["dtypes", "new_dtypes"])
def test_every_dtype_keeps_its_type_and_values(name, form):
    arrays = load_case(name, form)
    assert len(arrays) == {"dtypes": 12, "new_dtypes": 5}[name]
    for dtype, array in arrays.items():
        expected = np.dtype(getattr(ml_dtypes, dtype, dtype))
        assert array.dtype == expected
        np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3).astype(dtype))


@pytest.mark.parametrize("form", FORMATS)
def test_views_keep_offsets_strides_and_shared_memory(form):
    arrays = load_case("views", form)
    base = np.arange(24, dtype=np.float32)
    matrix = base.reshape(4, 6)
    nhwc = np.arange(24.0).reshape(1, 2, 3, 4)
    expected = {
        "base": base,
        "matrix": matrix,
        "transposed": matrix.T,
        "strided": base[3::4],
        "block": matrix[1:3, 2:5],
        "expanded": np.full((3, 4), 5.0),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "channels_last": nhwc,
    }
    assert list(arrays) == list(expected)
    for name, values in expected.items():
        assert arrays[name].dtype == np.float32 and arrays[name].shape == values.shape
        np.testing.assert_array_equal(arrays[name], values, err_msg=name)
        assert not arrays[name].flags.writeable
    assert arrays["expanded"].strides == (0, 0)
    assert arrays["channels_last"].strides == (96, 4, 32, 8)
    for name in ("matrix", "transposed", "strided", "block", "expanded"):
        assert np.shares_memory(arrays[name], arrays["base"])
    assert not np.shares_memory(arrays["scalar"], arrays["base"])


@pytest.mark.parametrize("form", FORMATS)
def test_training_checkpoint_gives_tensors_and_inert_placeholders(form):
    checkpoint = load_case("checkpoint", form)
    meta = checkpoint["meta"]
    inert = {"config": "vanished_package.Config", "time": "datetime.datetime"}
    inert |= {"function": "numpy.mean", "device": "torch.device"}
    for entry, name in inert.items():
        assert type(meta[entry]) is Placeholder and meta[entry].name == name
    assert type(meta["best"]) is type(meta["history"]) is Placeholder
    assert meta["shape"] == (2, 3) and meta["dtype"] == np.float16
    assert checkpoint["epoch"] == 7
    momentum = checkpoint["optimizer"]["state"][1]["momentum_buffer"]
    assert momentum.shape == (2,)

    arrays = torch_file.state_dict_of(checkpoint)
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["0.weight", "0.bias", *(f"1.{name}" for name in names)]
    assert list(arrays) == expected
    np.testing.assert_array_equal(arrays["0.weight"], np.full((2, 3, 1, 1), 0.25))
    np.testing.assert_allclose(arrays["1.running_mean"], [0.1, 0.1])
    assert arrays["1.num_batches_tracked"] == 1


@pytest.mark.parametrize("form", FORMATS)
def test_parameters_and_tensor_attributes_become_plain_arrays(form):
    arrays = load_case("parameters", form)
    np.testing.assert_array_equal(arrays["plain"], [[0, 1, 2], [3, 4, 5]])
    for name, count in {"frozen": 2, "named": 3, "tensor": 4}.items():
        assert type(arrays[name]) is np.ndarray
        np.testing.assert_array_equal(arrays[name], np.arange(count))


@pytest.mark.parametrize("form", FORMATS)
def test_pickle_protocol_4_is_read(form):
    arrays = torch_file.read_state_dict(FILES / f"protocol4_{form}.pth")
    np.testing.assert_array_equal(arrays["weight"], [0, 1, 2, 3])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quantized", "torch.QInt8Storage"),
        ("sparse", "_rebuild_sparse_tensor"),
        ("module", "torch.nn.modules.linear.Linear"),
    ],
)
def test_files_without_dense_tensors_are_rejected_by_name(name, message, form):
    with pytest.raises(UserError, match=message):
        torch_file.read_state_dict(FILES / f"{name}_{form}.pth")


def test_legacy_views_and_python_2_items_are_read(tmp_path):
    view = b"(" + string("view") + integer(2) + integer(3) + b"t"
    args = storage(8, "a", view) + integer(1) + sizes(2) + sizes(1)
    pair = string("weight") + b"ctorch._utils\n_rebuild_tensor\n(" + args + b"tR"
    program = b"ccollections\nOrderedDict\n(((" + pair + b"lltR"
    data = np.arange(8, dtype=np.float32).tobytes()
    path = write_legacy(tmp_path / "old.pth", program, {"a": data}, numel=8)
    arrays = torch_file.read_state_dict(path)
    np.testing.assert_array_equal(arrays["weight"], [3, 4])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("order", ["little", "big"])
def test_both_byte_orders_give_the_same_values(tmp_path, form, order):
    data = np.arange(4).astype({"little": "<f4", "big": ">f4"}[order]).tobytes()
    program = tensor(0, sizes(2, 2), sizes(2, 1))
    path = tmp_path / "order.pth"
    if form == "zip":
        write_zip(path, program, data, byteorder=order.encode())
    else:
        write_legacy(path, program, {"0": data}, order=order)
    array = torch_file.load_file(path)
    np.testing.assert_array_equal(array, [[0, 1], [2, 3]])
    assert array.dtype == np.float32 and not array.flags.writeable


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net", "my_own_name", None])
@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module."),
        *("model.", "net.", "model._orig_mod.network."),
    ],
)
def test_state_dict_is_found_and_unprefixed(wrapper, prefix):
    flat = {f"{prefix}a.weight": np.ones(2), f"{prefix}b.bias": np.zeros(1)}
    checkpoint = flat if wrapper is None else {"epoch": 3, wrapper: {**flat, "n": 1}}
    assert list(torch_file.state_dict_of(checkpoint)) == ["a.weight", "b.bias"]


def test_mapping_of_many_names_for_one_mapping_is_looked_at_once():
    class Counted(dict):
        looked = 0

        def items(self):
            Counted.looked += 1
            return super().items()

    inner = Counted(a=np.ones(2))
    found = torch_file.state_dict_of({f"entry{i}": inner for i in range(1000)})
    assert [*found] == ["a"] and Counted.looked < 10


def test_prefixes_of_a_malicious_key_are_not_all_removed():
    found = torch_file.state_dict_of({"net." * 1000 + "w": np.ones(2)})
    assert [*found] == ["net." * 984 + "w"]


def test_prefix_chooses_one_of_several_networks():
    arrays = {"student.module.a": np.ones(2), "teacher.a": np.zeros(1), "loss": 3}
    for prefix in ("student.", "student", "student.module."):
        found = torch_file.state_dict_of(arrays, prefix=prefix)
        assert {name: array.shape for name, array in found.items()} == {"a": (2,)}
    wrapped = {f"module.{key}": array for key, array in arrays.items()}
    assert torch_file.state_dict_of(wrapped, prefix="teacher.")["a"].shape == (1,)
    with pytest.raises(UserError, match="'teach': no key has it; .* student., teacher"):
        torch_file.state_dict_of(arrays, prefix="teach")


def test_prefix_of_only_some_names_stays():
    arrays = {"module.a": np.ones(2), "b": np.ones(2)}
    assert list(torch_file.state_dict_of(arrays)) == ["module.a", "b"]


@pytest.mark.parametrize(
    "checkpoint",
    [3, [np.ones(2)], {}, {"a": {"x": np.ones(1)}, "b": {"x": np.ones(1)}}],
)
def test_no_single_state_dict_is_an_error(checkpoint):
    with pytest.raises(UserError, match="holds no state dict"):
        torch_file.state_dict_of(checkpoint, source="some.pth")


def write_safetensors(path: pathlib.Path, dtype: str, shape: list[int], data: bytes):
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
    header = json.dumps({"weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize(("dtype", "ours"), [("F32", "float32"), ("BF16", "bfloat16")])
def test_safetensors_are_read(tmp_path, dtype, ours):
    values = np.arange(6).astype(getattr(ml_dtypes, ours, ours)).reshape(2, 3)
    path = tmp_path / "a.safetensors"
    write_safetensors(path, dtype, [2, 3], values.tobytes())
    array = torch_file.read_state_dict(path)["weight"]
    assert array.dtype == values.dtype
    np.testing.assert_array_equal(array, values)


def test_damaged_safetensors_are_an_error(tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", "F32", [2**40], bytes(8))
    with pytest.raises(UserError, match="not a readable safetensors file"):
        torch_file.load_file(path)


def malicious_programs(sentinel: pathlib.Path) -> dict[str, bytes]:
    """Programs that try to create `sentinel`; most of them succeed under pickle."""
    shell = b"(" + string(f"touch {sentinel}") + b"t"
    code = b"(" + string(f"open({str(sentinel)!r}, 'w').close()") + b"t"
    system = b"cos\nsystem\n"
    thing = b"cvanished\nThing\n)R"
    hooks = storage(4) + integer(0) + sizes(4) + sizes(1) + b"\x89" + system
    dotted = string("torch._utils") + string("_rebuild_tensor_v2.__globals__")
    return {
        "os.system": system + shell + b"R",
        "eval": b"cbuiltins\neval\n" + code + b"R",
        "stack global": string("builtins") + string("exec") + b"\x93" + code + b"R",
        "dotted name": string("os") + string("path.os.system") + b"\x93" + shell + b"R",
        "dotted torch name": dotted + b"\x93" + shell + b"R",
        "nested": b"cfunctools\npartial\n(" + system + shell[1:] + b"R)R",
        "getattr": b"cbuiltins\ngetattr\n(cos\nsys\n"
        + string("x")
        + b"tR"
        + code
        + b"R",
        "instance": shell[:-1] + b"ios\nsystem\n",
        "object": b"(" + system + shell[1:-1] + b"o",
        "new object": system + shell + b"\x81",
        "new object with keywords": system + shell + b"}\x92",
        "state": thing + b"}" + string("__setstate__") + system + b"sb",
        "hooks": TENSOR + b"(" + hooks + shell + b"RtR",
        "default factory": b"ccollections\ndefaultdict\n(" + system + b"tR",
        "key": b"}" + system + shell + b"RNs",
        "append": thing + shell[:-1] + b"e",
        "items": thing + shell[:-1] + system + b"u",
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", malicious_programs(pathlib.Path("x")))
def test_named_functions_are_never_executed(tmp_path, case, form):
    sentinel = tmp_path / "sentinel"
    program = malicious_programs(sentinel)[case]
    importlib.import_module("encodings.cp437")  # of names in archives
    before = set(sys.modules)
    path = tmp_path / "malicious.pth"
    if form == "zip":
        write_zip(path, b"(" + program + b"l")
    else:
        data = {"0": bytes(16)} if case == "hooks" else {}
        write_legacy(path, b"(" + program + b"l", data)
    (result,) = torch_file.load_file(path)
    assert isinstance(result, Placeholder | np.ndarray | dict)
    assert not sentinel.exists()
    assert set(sys.modules) == before


def test_malicious_programs_would_run_under_pickle(tmp_path):
    """Shows that the cases above are effective."""
    sentinel = tmp_path / "sentinel"
    for case in (
        "os.system",
        "eval",
        "stack global",
        "dotted name",
        "instance",
        "nested",
    ):
        pickle.loads(b"\x80\x04" + malicious_programs(sentinel)[case] + b".")
        assert sentinel.exists(), case
        sentinel.unlink()


REJECTED = {
    "past the end": (tensor(1, sizes(4), sizes(1)), "reaches element 4"),
    "stride past the end": (tensor(0, sizes(2, 2), sizes(3, 1)), "reaches element 4"),
    "offset": (tensor(2**40, sizes(1), sizes(1)), "reaches element"),
    "negative offset": (
        tensor(-1, sizes(1), sizes(1)),
        "invalid shape, strides or offset",
    ),
    "negative size": (
        tensor(0, sizes(-1), sizes(1)),
        "invalid shape, strides or offset",
    ),
    "negative stride": (
        tensor(3, sizes(4), sizes(-1)),
        "invalid shape, strides or offset",
    ),
    "absurd size": (tensor(0, sizes(2**40), sizes(1)), "reaches element"),
    "overflow": (tensor(0, sizes(2**33, 2**31), sizes(2**31, 1)), "reaches element"),
    "long": (tensor(0, sizes(2**200), sizes(1)), "invalid shape, strides or offset"),
    "expanded": (tensor(0, sizes(2**40), sizes(0)), "16 times larger"),
    "expanded twice": (tensor(0, sizes(2**50, 2**50), sizes(0, 0)), "16 times larger"),
    "empty overflow": (
        tensor(0, sizes(0, 2**60, 2**60), sizes(1, 1, 1)),
        "too (big|many|large)",
    ),
    "dimensions": (
        tensor(0, sizes(*[1] * 99), sizes(*[1] * 99)),
        "invalid shape, strides or offset",
    ),
    "ranks": (
        tensor(0, sizes(2, 2), sizes(1)),
        "different numbers of strides and dimensions",
    ),
    "storage": (tensor(0, sizes(4), sizes(1), numel=5), "asks for 20 bytes"),
    "large storage": (tensor(0, sizes(4), sizes(1), numel=2**61), "asks for"),
    "negative storage": (
        tensor(0, sizes(4), sizes(1), numel=-4),
        "invalid key or size",
    ),
    "no storage": (storage(4, key="1"), "lacks storage '1'"),
    "path": (storage(4, key="../data.pkl"), "lacks storage"),
    "strange id": (string("storage") + b"Q", "other than a torch storage"),
    "text id": (b"Pstorage\n", "PERSID"),
    "extension": (b"\x82\x01)R", "EXT1"),
    "extension 2": (b"\x83\x01\x00)R", "EXT2"),
    "extension 4": (b"\x84\x01\x00\x00\x00)R", "EXT4"),
    "buffer": (b"\x97", "NEXT_BUFFER"),
    "call of a string": (string("os.system") + b")R", "calls a str"),
    "call of a tensor": (tensor(0, sizes(4), sizes(1)) + b")R", "calls a ndarray"),
    "items of a tensor": (tensor(0, sizes(4), sizes(1)) + b"K\x00K\x00s", "sets items"),
    "append to a tensor": (tensor(0, sizes(4), sizes(1)) + b"K\x00a", "appends to"),
    "tensor of nothing": (TENSOR + b")R", "without a storage"),
    "tensor of a list": (TENSOR + b"]R", "no tuple"),
    "parameter": (b"ctorch.nn.parameter\nParameter\n)R", "without a tensor"),
    "size": (b"ctorch\nSize\n(" + string("a") + b"tR", "torch.Size"),
    "ordered": (b"ccollections\nOrderedDict\n(K\x01tR", "OrderedDict"),
    "memo": (b"h\x07", "damaged"),
    "empty stack": (b"000", "damaged"),
    "huge memo index": (b"Np99999999999999999999\n", "32 bits"),
    "huge bytes": (b"\x8e" + b"\xff" * 7 + b"\x7f", "damaged"),
    "global of no names": (b"K\x01K\x02\x93", "other than strings"),
    "long name": (b"c" + b"a" * 500 + b"\nb\n", "over 300 characters"),
    "nested tensor subclass": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n2(NN)NtR",
        "damaged|calls a NoneType",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_malicious_sizes_and_instructions_are_rejected_in_one_line(tmp_path, case):
    program, message = REJECTED[case]
    path = write_zip(tmp_path / "malicious.pth", program)
    with pytest.raises(UserError, match=message) as caught:
        torch_file.load_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_legacy_storage_beyond_the_file_is_rejected(tmp_path):
    program = tensor(0, sizes(4), sizes(1))
    for numel in (5, 2**40, 2**63 - 1, 2**64 - 1):
        path = write_legacy(tmp_path / "a.pth", program, {"0": bytes(16)}, numel)
        with pytest.raises(UserError, match="truncated"):
            torch_file.load_file(path)


def test_legacy_view_beyond_its_storage_is_rejected(tmp_path):
    view = b"(" + string("view") + integer(2) + integer(3) + b"t"
    path = write_legacy(tmp_path / "a.pth", storage(4, "0", view), {"0": bytes(16)})
    with pytest.raises(UserError, match="leaves storage"):
        torch_file.load_file(path)


def test_copies_of_shared_items_are_bounded(tmp_path):
    """Every 4 bytes request a copy of one long list; the number of steps is bounded."""
    pairs = b"](" + b"(NNl" * 5000 + b"eq\x010"
    copies = b"ccollections\nOrderedDict\n(h\x01tR0" * 5000
    start = time.monotonic()
    with pytest.raises(UserError, match="instructions"):
        torch_file.load_file(write_zip(tmp_path / "a.pth", pairs + copies + b"N"))
    assert time.monotonic() - start < 20


def test_nested_tuples_as_keys_are_not_hashed(tmp_path):
    """Hashing this tuple would take 2^60 steps."""
    program = b"})" + b"2\x86" * 60 + b"Ns"
    (key,) = torch_file.load_file(write_zip(tmp_path / "a.pth", program))
    assert isinstance(key, Placeholder)


def test_search_of_a_mapping_that_contains_itself_ends(tmp_path):
    program = b"}q\x01" + string("model") + b"h\x01s"
    with pytest.raises(UserError, match="holds no state dict"):
        torch_file.read_state_dict(write_zip(tmp_path / "a.pth", program))


def test_zip_bombs_and_overlapping_members_are_rejected(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("root/data.pkl", b"N.")
        archive.writestr("root/data/0", bytes(2**20))
    with pytest.raises(UserError, match="compressed"):
        torch_file.load_file(path)
    content = write_zip(path, b"N", bytes(1000)).read_bytes()
    sizes_of_member = struct.pack("<II", 1000, 1000)
    path.write_bytes(content.replace(sizes_of_member, struct.pack("<II", 2**30, 2**30)))
    with pytest.raises(UserError, match="larger than the file|damaged"):
        torch_file.load_file(path)


OTHER_FILES = {
    "empty": (b"", "is empty"),
    "text": (b"hello", "not a torch file"),
    "page": (b"\n<!DOCTYPE html>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "gzip": (b"\x1f\x8b\x08", "gzip"),
    "hdf5": (b"\x89HDF\r\n", "HDF5"),
    "tar": (bytes(257) + b"ustar", "tar archive"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "a pickle, but not of torch.save"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_other_files_are_named(tmp_path, case):
    content, message = OTHER_FILES[case]
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        torch_file.load_file(path)


def test_missing_file_folder_torchscript_and_npz_are_named(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        torch_file.load_file(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is not a file"):
        torch_file.load_file(tmp_path)
    with pytest.raises(UserError, match="TorchScript"):
        torch_file.load_file(FILES / "torchscript.pt")
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with pytest.raises(UserError, match="not of torch.save"):
        torch_file.load_file(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["checkpoint_zip", "checkpoint_legacy"])
def test_truncated_files_are_rejected(tmp_path, name):
    content = (FILES / f"{name}.pth").read_bytes()
    path = tmp_path / "short.pth"
    for length in [*range(0, len(content), 50), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            torch_file.load_file(path)


@pytest.mark.parametrize("name", ["checkpoint", "views", "new_dtypes"])
@pytest.mark.parametrize("form", FORMATS)
def test_flipped_bytes_give_a_result_or_a_user_error(tmp_path, name, form):
    content = (FILES / f"{name}_{form}.pth").read_bytes()
    draw = random.Random(0)
    path = tmp_path / "flipped.pth"
    rejected = 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            torch_file.load_file(path)
        except UserError:
            rejected += 1
    assert rejected
