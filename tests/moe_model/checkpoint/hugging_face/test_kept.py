"""What is kept in a folder's own bytes stands for the numbers that are read of it, part by part; what is not
finite is refused in either way.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_model.checkpoint.hugging_face.kept import form_of, how_stored, read_kept
from moe_model.checkpoint.hugging_face.quantised import BlockFp8, Mxfp4, Quantisation
from moe_model.checkpoint.hugging_face.shards import ShardedTable
from moe_model.checkpoint.hugging_face.sources import Finder, Found, read_found
from moe_model.errors import CheckpointError
from moe_model.families.hugging_face import Part, TensorSource
from moe_model.layers.stored_matrix import stored_matrix
from moe_model.names import StoredForm
from tests.moe_model.checkpoint.hugging_face.test_stored import NAME, e4m3, random_bytes
from tests.moe_model.checkpoint.hugging_face.written import write_folder
from tests.stored_numbers import numbers

WHOLE: tuple[Part, ...] = ("all",)
HALVES: tuple[Part, ...] = ("first_half", "second_half")
IN_TURNS: tuple[Part, ...] = ("even", "odd")


def found(
    folder: Path,
    tensors: Mapping[str, Tensor],
    quantisation: Quantisation,
    shape: tuple[int, int],
    parts: tuple[Part, ...] = WHOLE,
    item: int | None = None,
    is_transposed: bool = False,
) -> dict[str, Found]:
    finder = Finder(ShardedTable(write_folder(folder, tensors)), quantisation)
    rows, columns = shape
    sources = {part: TensorSource(NAME, item, part, is_transposed) for part in parts}
    return {part: finder.find((source,), (rows // len(parts), columns)) for part, source in sources.items()}


def check(parts: dict[str, Found], form: StoredForm) -> None:
    assert {form_of(each) for each in parts.values()} == {form}
    kept, read = read_kept(parts, "here"), read_found(parts, torch.float32, "cpu", "here")
    for name, expected in read.items():
        matrix = stored_matrix(kept, name, form)
        assert matrix.bytes_Ob.is_contiguous()
        assert torch.equal(numbers(matrix).float(), expected)


@pytest.mark.parametrize("parts", [WHOLE, HALVES, IN_TURNS], ids=str)
def test_mxfp4(parts: tuple[Part, ...], tmp_path: Path) -> None:
    blocks, scales = random_bytes(3, 14, 2, 16), random_bytes(3, 14, 2).clamp(max=250)
    tensors = {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}
    check(found(tmp_path, tensors, Mxfp4(), (14, 64), parts, 1, is_transposed=True), "mxfp4")


@pytest.mark.parametrize("parts", [WHOLE, HALVES], ids=str)
@pytest.mark.parametrize("rows", [3, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8(parts: tuple[Part, ...], rows: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """Halves end within a block, and so do columns."""
    scale = torch.rand(-(-14 // rows), 3).to(dtype)
    tensors = {NAME: e4m3(14, 300), f"{NAME}_scale_inv": scale}
    check(found(tmp_path, tensors, BlockFp8(rows, 128), (14, 300), parts), "fp8")


def test_what_can_be_kept_and_what_all_is_called(tmp_path: Path) -> None:
    narrow = {NAME: e4m3(256, 256), f"{NAME}_scale_inv": torch.ones(2, 4)}
    square = narrow | {f"{NAME}_scale_inv": torch.ones(2, 2)}
    cases: tuple[tuple[Mapping[str, Tensor], Quantisation, bool, str], ...] = (
        (narrow, BlockFp8(128, 64), False, "fp8 in blocks of 128 x 64"),
        (
            square,
            BlockFp8(128, 128),
            True,
            "fp8 in blocks of 128 x 128, inputs first",
        ),
        ({NAME: torch.ones(256, 256)}, Mxfp4(), False, "float32"),
    )
    for place, (tensors, quantisation, is_turned, text) in enumerate(cases):
        parts = found(tmp_path / str(place), tensors, quantisation, (256, 256), is_transposed=is_turned)
        assert (form_of(parts["all"]), how_stored(parts["all"])) == (None, text)


@pytest.mark.parametrize(("scale", "code"), [(255, 0), (254, 4), (253, 6), (253, 15)])
def test_mxfp4_that_is_not_finite(scale: int, code: int, tmp_path: Path) -> None:
    blocks, scales = random_bytes(1, 6, 2, 16), random_bytes(1, 6, 2).clamp(max=252)
    scales[0, 4, 1], blocks[0, 4, 1] = scale, 0
    tensors = {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}
    if scale < 255:
        # Of zeros and small values, not even the largest is.
        check(found(tmp_path / "good", tensors, Mxfp4(), (6, 64), item=0), "mxfp4")
    blocks[0, 4, 1, 7] = code << 4
    check_refused(found(tmp_path / "bad", tensors, Mxfp4(), (6, 64), item=0))


def test_fp8_that_is_not_finite(tmp_path: Path) -> None:
    for place, (byte, scale) in enumerate(((0x7F, 1.0), (0xFF, 1.0), (0x7E, float("inf")), (0x7E, 1e36))):
        values, scales = e4m3(6, 200), torch.ones(1, 2)
        values.view(torch.uint8)[3, 150], scales[0, 1] = byte, scale
        tensors = {NAME: values, f"{NAME}_scale_inv": scales}
        check_refused(found(tmp_path / str(place), tensors, BlockFp8(128, 128), (6, 200)))


def check_refused(parts: dict[str, Found]) -> None:
    for read in (read_kept, lambda parts, where: read_found(parts, torch.bfloat16, "cpu", where)):
        with pytest.raises(CheckpointError, match=f"here: tensor '{NAME}' has values that are not finite"):
            read(parts, "here")
