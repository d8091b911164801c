"""One tensor of a folder as numbers, in whichever way they are written. Slices are read, never more.

Shapes: N items of a stacked tensor (its first dimension), R rows of an item, I inputs.
"""

from collections.abc import Callable, Sequence
from math import ldexp, prod
from typing import Protocol

import torch
from torch import Tensor

from moe_model.checkpoint.hugging_face.quantised import BlockFp8, Mxfp4, Quantisation
from moe_model.checkpoint.hugging_face.shards import ShardedTable
from moe_model.errors import CheckpointError

_FP8 = "F8_E4M3"
# Of one block of MXFP4: its bytes, and its values.
_BLOCK_BYTES, _BLOCK_VALUES = 16, 32
# Source: OCP Microscaling Formats (MX) Specification, 2023: e2m1 values, e8m0 scales. Scale 255 is not a
# number, and neither is what it scales.
_E2M1 = torch.tensor([sign * value for sign in (1, -1) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)])
# Byte -> its two values, the lower half first.
_PAIRS = torch.stack([_E2M1.repeat(16), _E2M1.repeat_interleave(16)], dim=1)
_E8M0 = torch.tensor([*(ldexp(1.0, exponent - 127) for exponent in range(255)), float("nan")])
# 256 · scale + byte -> both values, scaled, which is exact in bfloat16: as one number of 32 bits, since one
# look-up takes a sixth of the time of two and a product.
_SCALED_PAIRS = (_E8M0[:, None, None] * _PAIRS).to(torch.bfloat16).view(torch.int32).flatten()
# Of each byte: torch's own conversion takes twice the time of a look-up.
_E4M3 = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
# So many look-ups stay in a processor's cache, which takes a quarter of the time of all in one.
_PLACES_AT_ONCE = 1 << 18


class Stored(Protocol):
    """`names`: the folder's tensors it consists of, the one with most bytes first. `dtype`: what is nearest
    to how the values are stored."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def num_bytes(self) -> int:
        """In the files."""

    @property
    def has_rows_of_outputs(self) -> bool:
        """Whether a matrix is [out, in] in this form, even where the plain one is not."""

    def read(self, item: int | None, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of an item, or of the whole: exact, in float32 or as stored. Raises
        CheckpointError."""


class Plain:
    """A tensor of a floating dtype."""

    has_rows_of_outputs = False

    def __init__(self, table: ShardedTable, name: str) -> None:
        dtype = table.dtype(name)
        if dtype is None:
            raise CheckpointError(
                f"{table.where}: tensor {name!r} is not of a floating dtype, it is {table.code(name)}"
            )
        self.names, self.shape, self.dtype = (name,), table.shape(name), dtype
        self.num_bytes = prod(self.shape) * dtype.itemsize
        self._table = table

    def read(self, item: int | None, begin: int, end: int) -> Tensor:
        return _read_rows(self._table, self.names[0], item, begin, end)


class BlockScaled:
    """e4m3 values, and a tensor of scales with one for each block of a matrix: value x scale of its block.

    The last blocks of rows and of columns may be partial.
    """

    has_rows_of_outputs = False
    dtype = torch.bfloat16

    def __init__(self, table: ShardedTable, name: str, block: BlockFp8) -> None:
        scales = f"{name}_scale_inv"
        if scales not in table.names:
            raise CheckpointError(f"{table.where}: tensor {scales!r} is missing: {name!r} is of {_FP8}")
        self.names, self.shape = (name, scales), table.shape(name)
        if len(self.shape) < 2:
            raise CheckpointError(f"{table.where}: tensor {name!r} of {_FP8} is not a matrix")
        *items, rows, columns = self.shape
        grid = (*items, -(-rows // block.rows), -(-columns // block.columns))
        _check_form(table, scales, grid, table.dtype(scales) is not None)
        self.num_bytes = prod(self.shape) + prod(grid) * _itemsize(table, scales)
        self._table, self.block = table, block

    def read(self, item: int | None, begin: int, end: int) -> Tensor:
        rows, columns = self.block.rows, self.block.columns
        bytes_RI = self.read_bytes(item, begin, end)
        values_RI = _look_up(_E4M3, bytes_RI.shape, lambda rows: bytes_RI[rows].int())
        first, last = begin // rows, -(-end // rows)
        scale_BC = self._read_grid(item, first, last)
        for block in range(first, last):
            part_RI = values_RI[max(block * rows - begin, 0) : (block + 1) * rows - begin]
            part_RI *= scale_BC[block - first].repeat_interleave(columns)[: self.shape[-1]]
        return values_RI

    def read_bytes(self, item: int | None, begin: int, end: int) -> Tensor:
        """Of rows, as they are: uint8 [R, I]."""
        return _read_rows(self._table, self.names[0], item, begin, end).view(torch.uint8)

    def read_scales(self, item: int | None, begin: int, end: int) -> Tensor:
        """Of each row its own: float32 [R, blocks of a row]."""
        rows = self.block.rows
        first = begin // rows
        return self._read_grid(item, first, -(-end // rows))[torch.arange(begin, end) // rows - first]

    def _read_grid(self, item: int | None, first: int, last: int) -> Tensor:
        return _read_rows(self._table, self.names[1], item, first, last).float()


class Blocks4:
    """MXFP4: `X_blocks` [N, R, I/32, 16] of bytes and `X_scales` [N, R, I/32], rows are outputs."""

    has_rows_of_outputs = True
    dtype = torch.bfloat16

    def __init__(self, table: ShardedTable, name: str) -> None:
        blocks, scales = f"{name}_blocks", f"{name}_scales"
        if scales not in table.names:
            raise CheckpointError(f"{table.where}: tensor {scales!r} is missing, and there is {blocks!r}")
        self.names = blocks, scales
        shape = table.shape(blocks)
        is_right = len(shape) >= 3 and shape[-1] == _BLOCK_BYTES and table.code(blocks) == "U8"
        if not is_right:
            raise CheckpointError(
                f"{table.where}: tensor {blocks!r} is of {table.code(blocks)} {list(shape)}, "
                f"expected U8 [..., {_BLOCK_BYTES}]"
            )
        _check_form(table, scales, shape[:-1], table.code(scales) == "U8")
        self.shape = (*shape[:-2], shape[-2] * _BLOCK_VALUES)
        self.num_bytes = prod(shape) + prod(shape[:-1])
        self._table = table

    def read(self, item: int | None, begin: int, end: int) -> Tensor:
        return mxfp4_numbers(
            _read_rows(self._table, self.names[0], item, begin, end), self.read_scales(item, begin, end)
        )

    def read_bytes(self, item: int | None, begin: int, end: int) -> Tensor:
        """Of rows, as they are: uint8 [R, I / 2]."""
        return _read_rows(self._table, self.names[0], item, begin, end).flatten(1)

    def read_scales(self, item: int | None, begin: int, end: int) -> Tensor:
        """Of rows, as they are: uint8 [R, I / 32]."""
        return _read_rows(self._table, self.names[1], item, begin, end)


def mxfp4_numbers(bytes_RBb: Tensor, scale_RB: Tensor) -> Tensor:
    """What they stand for, in bfloat16: [R, I], or as many dimensions as the scales have."""
    scale_RB = scale_RB.int()
    shape = len(bytes_RBb), prod(bytes_RBb.shape[1:])
    pairs_RN = _look_up(_SCALED_PAIRS, shape, lambda rows: (scale_RB[rows, ..., None] << 8) + bytes_RBb[rows])
    return pairs_RN.view(torch.bfloat16).view(*scale_RB.shape[:-1], -1)


def _look_up(table: Tensor, shape: Sequence[int], places: Callable[[slice], Tensor]) -> Tensor:
    """Values of a table for all rows of a matrix of this shape; `places` are those of some of its rows."""
    num_rows, width = shape
    found = torch.empty(num_rows, width, dtype=table.dtype)
    step = max(_PLACES_AT_ONCE // max(width, 1), 1)
    for first in range(0, num_rows, step):
        rows = slice(first, first + step)
        torch.index_select(table, 0, places(rows).flatten(), out=found[rows].view(-1))
    return found


def stored_tensor(table: ShardedTable, name: str, quantisation: Quantisation | None) -> Stored | None:
    """What there is under a name; None where there is nothing. Raises CheckpointError."""
    if name in table.names:
        if isinstance(quantisation, BlockFp8) and table.code(name) == _FP8:
            return BlockScaled(table, name, quantisation)
        return Plain(table, name)
    if isinstance(quantisation, Mxfp4) and f"{name}_blocks" in table.names:
        return Blocks4(table, name)
    return None


def _read_rows(table: ShardedTable, name: str, item: int | None, begin: int, end: int) -> Tensor:
    shape = table.shape(name)
    _, *rest = shape if item is None else shape[1:]
    width, num_rows = prod(rest), end - begin
    first = 0 if item is None else item * prod(shape[1:])
    return table.read_values(name, first + begin * width, num_rows * width).view(num_rows, *rest)


def _itemsize(table: ShardedTable, name: str) -> int:
    dtype = table.dtype(name)
    assert dtype is not None
    return dtype.itemsize


def _check_form(table: ShardedTable, name: str, shape: tuple[int, ...], is_of_its_dtype: bool) -> None:
    if table.shape(name) != shape or not is_of_its_dtype:
        found = f"{table.code(name)} {list(table.shape(name))}"
        raise CheckpointError(f"{table.where}: tensor {name!r} is of {found}, expected scales {list(shape)}")
