"""Tensors of a folder in 8 and 4 bits, against transformers' rules and formulas, on random bytes."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from moe_model.checkpoint.hugging_face import stored as stored_module
from moe_model.checkpoint.hugging_face.quantised import BlockFp8, Mxfp4, Quantisation
from moe_model.checkpoint.hugging_face.shards import ShardedTable
from moe_model.checkpoint.hugging_face.stored import Stored, stored_tensor
from moe_model.errors import CheckpointError
from tests.moe_model.checkpoint.hugging_face.written import write_folder

NAME = "model.x.weight"
GENERATOR = torch.Generator().manual_seed(0)


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=GENERATOR)


def found(folder: Path, tensors: Mapping[str, Tensor], quantisation: Quantisation | None) -> Stored:
    stored = stored_tensor(ShardedTable(write_folder(folder, tensors, shards=2)), NAME, quantisation)
    assert stored is not None
    return stored


def e4m3(*shape: int) -> Tensor:
    """Every finite value."""
    values = random_bytes(*shape)
    return torch.where((values & 127) == 127, 0, values).view(torch.float8_e4m3fn)


def scaled(values: Tensor, scale: Tensor, block: BlockFp8) -> Tensor:
    """Element by element: the value times the scale of its block, in float32."""
    rows = torch.arange(values.shape[-2]) // block.rows
    columns = torch.arange(values.shape[-1]) // block.columns
    return values.float() * scale[..., rows[:, None], columns[None, :]]


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((256, 384), BlockFp8(128, 128)),
        ((576, 256), BlockFp8(128, 128)),
        ((7, 5), BlockFp8(4, 3)),
        ((3, 5), BlockFp8(128, 128)),
        ((3, 9, 10), BlockFp8(4, 4)),
    ],
    ids=str,
)
def test_block_fp8_is_value_times_scale(shape: tuple[int, ...], block: BlockFp8, tmp_path: Path) -> None:
    *items, rows, columns = shape
    values = e4m3(*shape)
    scale = torch.rand(*items, -(-rows // block.rows), -(-columns // block.columns), generator=GENERATOR)
    stored = found(tmp_path, {NAME: values, f"{NAME}_scale_inv": scale}, block)
    assert stored.shape == shape
    assert stored.dtype == torch.bfloat16
    assert stored.num_bytes == values.nbytes + scale.nbytes
    expected = scaled(values, scale, block)
    for item in range(items[0]) if items else [None]:
        exact = expected if item is None else expected[item]
        assert torch.equal(stored.read(item, 0, rows), exact)
        for begin, end in ((1, 3), (0, 1), (rows - 1, rows), (rows // 2, rows)):
            assert torch.equal(stored.read(item, begin, end), exact[begin:end])


def test_block_fp8_is_what_transformers_says(tmp_path: Path) -> None:
    """Of whole blocks: of partial ones its dequantiser has no answer."""
    values, scale = e4m3(256, 384), torch.rand(2, 3, generator=GENERATOR)
    stored = found(tmp_path, {NAME: values, f"{NAME}_scale_inv": scale}, BlockFp8(128, 128))
    theirs = Fp8Dequantize.__new__(Fp8Dequantize)._dequantize_one(values, scale)
    assert torch.equal(stored.read(None, 0, 256), theirs.float())


@pytest.mark.parametrize("shape", [(3, 7, 2, 16), (2, 4, 1, 16)], ids=str)
def test_mxfp4_is_what_transformers_says(shape: tuple[int, ...], tmp_path: Path) -> None:
    blocks, scales = random_bytes(*shape), random_bytes(*shape[:-1]).clamp(max=250)
    tensors = {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}
    stored = found(tmp_path, tensors, Mxfp4())
    num_items, num_rows, num_blocks, _ = shape
    assert stored.shape == (num_items, num_rows, 32 * num_blocks)
    assert stored.num_bytes == blocks.nbytes + scales.nbytes
    # They give [item, in, out].
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    for item in range(num_items):
        assert torch.equal(stored.read(item, 0, num_rows), theirs[item])
        assert torch.equal(stored.read(item, 1, 3), theirs[item, 1:3])


@pytest.mark.parametrize("at_once", [1, 100, 1000])
def test_large_matrices_are_looked_up_in_parts(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, scales = random_bytes(1, 50, 2, 16), random_bytes(1, 50, 2).clamp(max=250)
    values, scale = e4m3(50, 70), torch.rand(5, 7)
    small = (
        found(tmp_path / "a", {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}, Mxfp4()),
        found(tmp_path / "b", {NAME: values, f"{NAME}_scale_inv": scale}, BlockFp8(10, 10)),
    )
    whole = [stored.read(item, 0, 50) for stored, item in zip(small, (0, None), strict=True)]
    monkeypatch.setattr(stored_module, "_PLACES_AT_ONCE", at_once)
    for stored, item, expected in zip(small, (0, None), whole, strict=True):
        assert torch.equal(stored.read(item, 0, 50), expected)


def test_mxfp4_by_its_definition(tmp_path: Path) -> None:
    """All codes, low half first; scales are powers of two, and the largest is not a number."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    scales = torch.tensor([*range(120, 134), 0, 255], dtype=torch.uint8).view(1, 1, 16)
    stored = found(tmp_path, {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}, Mxfp4())
    values = stored.read(0, 0, 1)[0]
    magnitudes = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    for byte in range(240):
        for place, code in ((2 * byte, byte % 16), (2 * byte + 1, byte // 16)):
            sign = -1 if code & 8 else 1
            expected = sign * magnitudes[code & 7] * 2.0 ** (int(scales.flatten()[byte // 16]) - 127)
            assert values[place] == expected, byte
    assert values[480:].isnan().all()


SCALE = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("tensors", "quantisation", "message"),
    [
        ({NAME: e4m3(7, 5)}, BlockFp8(4, 3), "'model.x.weight_scale_inv' is missing"),
        ({NAME: e4m3(7, 5)}, None, "is not of a floating dtype, it is F8_E4M3"),
        ({NAME: e4m3(7, 5)}, Mxfp4(), "is not of a floating dtype, it is F8_E4M3"),
        ({NAME: e4m3(7), f"{NAME}_scale_inv": SCALE}, BlockFp8(4, 3), "of F8_E4M3 is not a matrix"),
        ({NAME: e4m3(9, 5), f"{NAME}_scale_inv": SCALE}, BlockFp8(4, 3), "[2, 2], expected scales [3, 2]"),
        (
            {NAME: e4m3(7, 5), f"{NAME}_scale_inv": SCALE.int()},
            BlockFp8(4, 3),
            "I32 [2, 2], expected scales [2, 2]",
        ),
        ({f"{NAME}_blocks": random_bytes(2, 2, 1, 16)}, Mxfp4(), "'model.x.weight_scales' is missing"),
        (
            {f"{NAME}_blocks": random_bytes(2, 2, 1, 15), f"{NAME}_scales": random_bytes(2, 2, 1)},
            Mxfp4(),
            "is of U8 [2, 2, 1, 15], expected U8 [..., 16]",
        ),
        (
            {f"{NAME}_blocks": random_bytes(2, 2, 1, 16), f"{NAME}_scales": random_bytes(2, 2)},
            Mxfp4(),
            "U8 [2, 2], expected scales [2, 2, 1]",
        ),
    ],
)
def test_forms_that_are_none(
    tensors: dict[str, Tensor], quantisation: Quantisation | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        found(tmp_path, tensors, quantisation)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}: tensor ")


def test_nothing_under_a_name(tmp_path: Path) -> None:
    blocks = {f"{NAME}_blocks": random_bytes(2, 2, 1, 16), f"{NAME}_scales": random_bytes(2, 2, 1)}
    table = ShardedTable(write_folder(tmp_path, blocks))
    assert stored_tensor(table, "other", Mxfp4()) is None
    assert stored_tensor(table, NAME, None) is None
