"""Weights in panels, against torch's own operations. Shapes: O outputs, I inputs, N panels."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("moe_model.kernels.native._kernels", exc_type=ImportError)

from moe_model.kernels.native.pack import PANEL, in_turns, pack, pack_blocks
from moe_model.kernels.quantise import BLOCK, quantise_blocks
from moe_model.names import WeightForm

DTYPES = [torch.float32, torch.bfloat16, torch.int8]
SIZES = [(1, 1), (16, 16), (17, 33), (40, 7), (5, 64), (33, 18)]


def panels(weight_OI: Tensor) -> Tensor:
    """As src/matrix.h says."""
    step = 2 if weight_OI.dtype == torch.bfloat16 else 1
    full_OI = F.pad(weight_OI, (0, -weight_OI.shape[1] % step, 0, -len(weight_OI) % PANEL))
    packed = full_OI.view(-1, PANEL, full_OI.shape[1] // step, step).transpose(1, 2)
    return packed if step == 2 else packed.squeeze(-1)


def matrix(size: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (20 * torch.randn(size, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_matrix(size: tuple[int, int], dtype: torch.dtype) -> None:
    weight_OI = matrix(size, dtype)
    assert torch.equal(pack(weight_OI), panels(weight_OI))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_two_in_turns(size: tuple[int, int], dtype: torch.dtype) -> None:
    gate_OI, up_OI = matrix(size, dtype), matrix(size, dtype, seed=1)
    expected = torch.stack([panels(gate_OI), panels(up_OI)], dim=1).flatten(0, 1)
    assert torch.equal(pack(gate_OI, up_OI), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_of_wider_rows_and_columns(dtype: torch.dtype) -> None:
    whole_OI = matrix((40, 31), dtype)
    part_OI, columns_OI = whole_OI[3:36, 5:28], whole_OI.T
    assert torch.equal(pack(part_OI), panels(part_OI))
    assert torch.equal(pack(columns_OI), panels(columns_OI))
    assert torch.equal(pack(part_OI, part_OI.contiguous())[0::2], panels(part_OI))


def test_vectors_in_turns() -> None:
    gate_O, up_O = torch.arange(1.0, 19.0), torch.arange(101.0, 119.0)
    both = in_turns(gate_O, up_O)
    assert both.view(-1, PANEL)[0].tolist() == gate_O[:16].tolist()
    assert both.view(-1, PANEL)[1].tolist() == up_O[:16].tolist()
    assert both.view(-1, PANEL)[2].tolist() == [17.0, 18.0] + 14 * [0.0]


def unpacked(packed: Tensor, form: WeightForm) -> tuple[Tensor, Tensor]:
    """Values and scales, number by number, as src/blocks.h says."""
    num_panels, num_blocks, num_bytes = packed.shape
    assert num_bytes == PANEL * ({"q8": BLOCK, "q4": BLOCK // 2}[form] + 2)
    values = torch.empty(num_panels, PANEL, num_blocks, BLOCK, dtype=torch.int8)
    for output in range(PANEL):
        for i in range(BLOCK):
            place = i if form == "q8" else i % 16
            byte_NB = packed[:, :, 2 * PANEL + place // 4 * 4 * PANEL + 4 * output + place % 4].int()
            if form == "q4":
                byte_NB = byte_NB >> 4 if i >= 16 else byte_NB & 15
            values[:, output, :, i] = byte_NB - (128 if form == "q8" else 8)
    scale_NBp = packed[:, :, : 2 * PANEL].contiguous().view(torch.float16)
    return values.flatten(0, 1), scale_NBp.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("form", ["q8", "q4"])
@pytest.mark.parametrize("size", [(1, 1), (16, 32), (17, 33), (40, 70)], ids=str)
def test_blocks(size: tuple[int, int], form: WeightForm) -> None:
    blocks = quantise_blocks(torch.randn(size), form)
    values_OBk, scale_OB = unpacked(pack_blocks(*blocks, form), form)
    assert torch.equal(values_OBk[: size[0]], blocks[0])
    assert torch.equal(scale_OB[: size[0]], blocks[1])
    assert not values_OBk[size[0] :].any()
    assert not scale_OB[size[0] :].any()
