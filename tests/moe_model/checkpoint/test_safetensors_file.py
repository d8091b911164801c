import json
import struct
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_model.checkpoint.safetensors_file import Entry, parse, read_entries, serialise
from moe_model.errors import CheckpointError

SHAPES = {"a": (2, 3), "b": (4,)}
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4.0)}
ENTRIES: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
}


def file_of(header: object, num_bytes: int = 40) -> bytearray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray(struct.pack("<Q", len(text)) + text + bytes(num_bytes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_bit_for_bit(dtype: torch.dtype) -> None:
    data = serialise(TENSORS, SHAPES, dtype, "file")
    for tensors in (parse(bytearray(data), SHAPES, dtype, "file"), safetensors.torch.load(data)):
        for name, tensor in TENSORS.items():
            assert tensors[name].dtype == dtype
            assert torch.equal(tensors[name], tensor.to(dtype))


def test_tensors_that_share_memory_are_written_apart() -> None:
    base = torch.arange(6.0)
    tensors = {"a": base.view(2, 3), "b": base[:4], "c": torch.ones(1).expand(3)}
    shapes = SHAPES | {"c": (3,)}
    loaded = safetensors.torch.load(serialise(tensors, shapes, torch.float32, "file"))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_reads_other_orders_and_metadata() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": ENTRIES["a"] | {"data_offsets": [16, 40]},
        "b": ENTRIES["b"] | {"data_offsets": [0, 16]},
    }
    assert parse(file_of(header), SHAPES, torch.float32, "file").keys() == SHAPES.keys()


def _entry(**changes: object) -> dict[str, Any]:
    return ENTRIES | {"a": ENTRIES["a"] | changes}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bytearray(), "not a safetensors file"),
        (bytearray(b"\x02"), "not a safetensors file"),
        (bytearray(struct.pack("<Q", 2**63) + b"{}"), "not a safetensors file"),
        (bytearray(struct.pack("<Q", 3) + b"{}"), "not a safetensors file"),
        (file_of(b"{]"), "header"),
        (file_of([]), "expected an object"),
        (file_of(b'{"a": 1, "a": 2}'), "duplicate key 'a'"),
        (file_of(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "duplicate key 'dtype'"),
        (file_of({"a": ENTRIES["a"]}), "tensor 'b' is missing"),
        (file_of(ENTRIES | {"c": ENTRIES["b"]}), "unknown tensor 'c'"),
        (file_of(ENTRIES | {"../../etc/x": ENTRIES["b"]}), "unknown tensor '../../etc/x'"),
        (file_of(ENTRIES | {"a": 7}), "'a': malformed header entry"),
        (file_of(_entry(more=1)), "'a': malformed header entry"),
        (file_of(_entry(dtype="I64")), "'a' has dtype 'I64', expected 'F32'"),
        (file_of(_entry(dtype="BF16")), "'a' has dtype 'BF16', expected 'F32'"),
        (file_of(_entry(shape=[3, 2])), r"'a' has shape \[3, 2\], expected \[2, 3\]"),
        (file_of(_entry(shape=[2, -3])), "'a': malformed"),
        (file_of(_entry(shape=[[]])), "'a': malformed"),
        (file_of(_entry(data_offsets=[0, 20])), "'a': data_offsets do not fit"),
        (file_of(_entry(data_offsets=[-24, 0])), "'a': malformed data_offsets"),
        (file_of(_entry(data_offsets=[0, 24.0])), "'a': malformed data_offsets"),
        (file_of(_entry(data_offsets=[0, True])), "'a': malformed data_offsets"),
        (file_of(_entry(data_offsets=[2**63, 2**63 + 24])), "'b' overlaps another or leaves a gap"),
        (file_of(_entry(data_offsets=[16, 40])), "overlaps another or leaves a gap"),
        (file_of(_entry(data_offsets=[4, 28])), "overlaps another or leaves a gap"),
        (file_of(ENTRIES, 39), "39 bytes of tensor data, its header describes 40"),
        (file_of(ENTRIES, 41), "41 bytes of tensor data, its header describes 40"),
    ],
)
def test_refuses_a_bad_file_and_names_it(data: bytearray, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"^FILE: .*{reason}") as raised:
        parse(data, SHAPES, torch.float32, "FILE")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": TENSORS["a"]}, "'b' is missing"),
        (TENSORS | {"c": torch.ones(1)}, "unknown tensor 'c'"),
        (TENSORS | {"b": torch.ones(5)}, r"'b' has shape \[5\], expected \[4\]"),
    ],
)
def test_does_not_write_what_it_would_not_read(tensors: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        serialise(tensors, SHAPES, torch.float32, "FILE")


@given(st.data())
def test_any_bytes_are_tensors_or_a_checkpoint_error(data: st.DataObject) -> None:
    written = bytearray(serialise(TENSORS, SHAPES, torch.float32, "FILE"))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(written) - 1))
        written[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        tensors = parse(written, SHAPES, torch.float32, "FILE")
    except CheckpointError:
        return
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == SHAPES


def test_entries_of_a_file_of_which_nothing_is_known() -> None:
    header = {
        "__metadata__": {"a": "b"},
        **ENTRIES,
        "c": {"dtype": "I8", "shape": [0], "data_offsets": [40, 40]},
    }
    expected = {
        "a": Entry("F32", (2, 3), 0, 24),
        "b": Entry("F32", (4,), 24, 40),
        "c": Entry("I8", (0,), 40, 40),
    }
    assert read_entries(header, 40, "FILE") == expected


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (_entry(dtype="F33"), "'a': dtype 'F33' is unknown"),
        (_entry(dtype=["F32"]), "'a': dtype list is unknown"),
        (_entry(shape=[2, -3]), "'a': malformed header entry"),
        (_entry(shape=[2**40, 2**40]), "'a': data_offsets do not fit"),
        (_entry(more=1), "'a': malformed header entry"),
        (_entry(data_offsets=[0, 20]), "'a': data_offsets do not fit"),
        (_entry(data_offsets=[16, 40]), "overlaps another or leaves a gap"),
        (_entry(data_offsets=[24, 48]), "overlaps another or leaves a gap"),
        ({"a": ENTRIES["a"]}, "40 bytes of tensor data, its header describes 24"),
        ({"a": []}, "'a': malformed header entry"),
    ],
)
def test_refuses_bad_entries(header: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"^FILE: .*{reason}"):
        read_entries(header, 40, "FILE")
