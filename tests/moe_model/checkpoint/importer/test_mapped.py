"""Copies out of mapped files: exact for any layout, and None where the file has become too short."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_model.checkpoint.importer.mapped import copy_mapped
from moe_model.checkpoint.importer.torch_file import load_torch_file


def mapped(path: Path, tensor: Tensor) -> Tensor:
    torch.save({"a": tensor}, path)
    loaded = load_torch_file(path)
    assert isinstance(loaded, dict)
    found: Tensor = loaded["a"]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "layout", [lambda t: t, torch.t, lambda t: t[3:7, ::2], lambda t: t[0, 0].expand(5, 4), lambda t: t[:0]]
)
def test_a_copy_is_exact_and_in_memory_of_its_own(
    tmp_path: Path, layout: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    expected = layout(torch.randn(300, 200).to(dtype))
    tensor = mapped(tmp_path / "x.pt", expected)
    copy = copy_mapped(tensor)
    assert copy is not None
    assert copy.dtype == dtype
    assert torch.equal(copy, expected)
    assert not copy.numel() or copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_what_is_gone_is_none(tmp_path: Path) -> None:
    tensor = mapped(tmp_path / "x.pt", torch.randn(300, 200))
    num_fds = len(os.listdir("/proc/self/fd"))
    os.truncate(tmp_path / "x.pt", 100_000)
    assert copy_mapped(tensor) is None
    assert copy_mapped(tensor[:50]) is not None, "that part is still there"
    assert len(os.listdir("/proc/self/fd")) == num_fds
