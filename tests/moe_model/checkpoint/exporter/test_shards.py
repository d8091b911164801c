"""Files of tensors, against the safetensors library."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_model.checkpoint.exporter.layout import Planned
from moe_model.checkpoint.exporter.shards import ShardWriter

TENSORS = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).bfloat16(),
    "c": torch.randn(4, 2, 3),
    "d": torch.randn(2, 2),
}


def write(folder: Path, max_bytes: int, backwards: bool = False) -> None:
    """`c` item by item."""
    planned = {name: Planned(each.dtype, tuple(each.shape)) for name, each in TENSORS.items()}
    planned["c"] = Planned(torch.float32, (2, 3), num_items=4)
    pieces = [(name, None, each) for name, each in TENSORS.items() if name != "c"]
    items = [("c", item, TENSORS["c"][item]) for item in range(4)]
    with ShardWriter(folder, planned, max_bytes) as writer:
        for name, item, tensor in [*pieces, *items][:: -1 if backwards else 1]:
            writer.write(name, item, tensor)


@pytest.mark.parametrize("backwards", [False, True])
def test_one_file_in_any_order(backwards: bool, tmp_path: Path) -> None:
    write(tmp_path, 1 << 20, backwards)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], each) for name, each in TENSORS.items())
    assert all(found[name].dtype == each.dtype for name, each in TENSORS.items())


def test_no_file_is_larger_than_it_may_be(tmp_path: Path) -> None:
    """But for one with a single tensor: `c` has 96 bytes."""
    write(tmp_path, 80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())
    files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert index["weight_map"] == {"a": files[0], "b": files[0], "c": files[1], "d": files[2]}
    assert index["metadata"]["total_size"] == 60 + 14 + 96 + 16
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], TENSORS[name])


def test_a_tensor_that_was_not_written_is_found_out(tmp_path: Path) -> None:
    planned = {"a": Planned(torch.float32, (2,)), "b": Planned(torch.float32, (2,), num_items=2)}
    writer = ShardWriter(tmp_path, planned, 99)
    writer.__enter__()
    writer.write("a", None, torch.zeros(2))
    writer.write("b", 0, torch.zeros(2))
    with pytest.raises(AssertionError, match="b: was not written"):
        writer.__exit__(None, None, None)
