"""Matrices of a folder that are kept in its own bytes: as `layers/stored_matrix.py` has them.

Shapes: O outputs, B blocks of an output, b bytes of one.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from moe_model.checkpoint.finite import require_finite
from moe_model.checkpoint.hugging_face.sources import Found, is_turned, read_rows
from moe_model.checkpoint.hugging_face.stored import Blocks4, BlockScaled, Stored, mxfp4_numbers
from moe_model.layers.stored_matrix import BLOCK_INPUTS, SCALE, StoredMatrix
from moe_model.names import StoredForm

# Up to this scale all values of mxfp4 are finite, and those of fp8 times this one are.
_SAFE_POWER, _LARGEST_E4M3 = 252, 448.0


def form_of(found: Found) -> StoredForm | None:
    """In which it can be kept, if it can be."""
    stored = found.stored
    if isinstance(stored, Blocks4):
        return "mxfp4"
    is_fp8 = isinstance(stored, BlockScaled) and stored.block.columns == BLOCK_INPUTS["fp8"]
    return "fp8" if is_fp8 and not is_turned(stored, found.source) else None


def how_stored(found: Found) -> str:
    """For people."""
    stored = found.stored
    if isinstance(stored, BlockScaled):
        order = ", inputs first" if is_turned(stored, found.source) else ""
        return f"fp8 in blocks of {stored.block.rows} x {stored.block.columns}{order}"
    return "mxfp4" if isinstance(stored, Blocks4) else str(stored.dtype).removeprefix("torch.")


def read_kept(found: Mapping[str, Found], where: str) -> dict[str, Tensor]:
    """Each as its bytes by its name, and its scales. Raises CheckpointError, also for values that are not
    finite."""
    parts: dict[str, Found] = {}
    for name, each in found.items():
        for end, kind in (("", "bytes"), (SCALE, "scales")):
            parts[name + end] = replace(each, stored=_Kept(each.stored, kind))
    tensors = {name: tensor.contiguous() for name, tensor in read_rows(parts)}
    for name, each in found.items():
        form = form_of(each)
        assert form is not None
        _CHECKS[form](StoredMatrix(form, tensors[name], tensors[name + SCALE]), each.source.name, where)
    return tensors


class _Kept:
    """The bytes or the scales of a matrix, as what `read_rows` reads: each row with one of its own."""

    has_rows_of_outputs = True

    def __init__(self, stored: Stored, kind: str) -> None:
        assert isinstance(stored, BlockScaled | Blocks4)
        self.names = (f"{stored.names[0]} {kind}",)
        self.shape, self.dtype, self.num_bytes = stored.shape, stored.dtype, stored.num_bytes
        self._read = stored.read_bytes if kind == "bytes" else stored.read_scales

    def read(self, item: int | None, begin: int, end: int) -> Tensor:
        return self._read(item, begin, end)


def _check_mxfp4(matrix: StoredMatrix, name: str, where: str) -> None:
    """Few scales are so large, if any: only the numbers of their rows are looked at."""
    is_large_O = (matrix.scale_OB > _SAFE_POWER).any(dim=1)
    if is_large_O.any():
        bytes_Ob, scale_OB = matrix.bytes_Ob[is_large_O], matrix.scale_OB[is_large_O]
        require_finite(mxfp4_numbers(bytes_Ob.view(*scale_OB.shape, -1), scale_OB), name, where)


def _check_fp8(matrix: StoredMatrix, name: str, where: str) -> None:
    """NaN is two of the bytes, and nothing is infinite."""
    require_finite(_LARGEST_E4M3 * matrix.scale_OB, name, where)
    is_none_Ob = (matrix.bytes_Ob & 127) == 127
    if is_none_Ob.any():
        require_finite(torch.tensor([float("nan")]), name, where)


_CHECKS: Mapping[StoredForm, Callable[[StoredMatrix, str, str], None]] = {
    "mxfp4": _check_mxfp4,
    "fp8": _check_fp8,
}
