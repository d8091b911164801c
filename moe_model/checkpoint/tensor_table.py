"""Named tensors of one source file, read one by one, and the check that they are the expected ones."""

import hashlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from moe_model.checkpoint.finite import require_finite
from moe_model.checkpoint.safetensors_file import (
    check_names,
    header_length,
    read_entries,
    read_header,
    shape_message,
)
from moe_model.errors import CheckpointError
from moe_model.families.base import Shapes
from moe_model.files.piece_file import PieceFile

SAFETENSORS_SUFFIX = ".safetensors"
FLOAT_CODES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# What can be read: also what stands for the values of a weight, with scales beside it.
STORED_CODES = FLOAT_CODES | {"F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8}


class TensorTable(Protocol):
    """A file's tensors by name. `where` is the file, for messages."""

    @property
    def where(self) -> str: ...
    @property
    def names(self) -> frozenset[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype | None:
        """None for anything but the floating dtypes a weight can have."""

    def read(self, name: str) -> Tensor: ...


class SafetensorsTable:
    """A safetensors file, read tensor by tensor, or slice by slice; never mapped."""

    def __init__(self, path: Path) -> None:
        """Reads the header. Raises CheckpointError."""
        self.where = str(path)
        self.file = file = PieceFile(path)
        start = file.read(0, min(8, file.size))
        start += file.read(8, header_length(start, file.size, self.where))
        self.header_sha256 = hashlib.sha256(start).hexdigest()
        header, self.data_start = read_header(start, file.size, self.where)
        self._entries = read_entries(header, file.size - self.data_start, self.where)
        self.names = frozenset(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype | None:
        return FLOAT_CODES.get(self._entries[name].dtype)

    def code(self, name: str) -> str:
        """The dtype as the format names it."""
        return self._entries[name].dtype

    def read(self, name: str) -> Tensor:
        shape = self.shape(name)
        return self.read_values(name, 0, prod(shape)).view(shape)

    def read_values(self, name: str, begin: int, count: int) -> Tensor:
        """`count` of the tensor's values, in the order they are stored in, from number `begin` on: [count],
        in memory of its own, of a dtype in `STORED_CODES`."""
        entry = self._entries[name]
        dtype = STORED_CODES[entry.dtype]
        assert 0 <= begin <= begin + count <= prod(entry.shape)
        # Aligned as torch aligns: kernels may round differently with the alignment of their operands.
        data = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        self.file.read_into(self.data_start + entry.begin + begin * dtype.itemsize, data.numpy().data)
        return data.view(dtype)


class RenamedTable:
    """Another table under other names."""

    def __init__(self, table: TensorTable, theirs: Mapping[str, str]) -> None:
        """`theirs`: the table's name of each of ours."""
        self.where = table.where
        self.names = frozenset(theirs)
        self._table, self._theirs = table, theirs

    def shape(self, name: str) -> tuple[int, ...]:
        return self._table.shape(self._theirs[name])

    def dtype(self, name: str) -> torch.dtype | None:
        return self._table.dtype(self._theirs[name])

    def read(self, name: str) -> Tensor:
        return self._table.read(self._theirs[name])


def check_table(
    table: TensorTable,
    expected: Shapes,
    optional: frozenset[str] = frozenset(),
    names: frozenset[str] | None = None,
) -> None:
    """Raises CheckpointError unless the table holds exactly the expected tensors; `optional` may be absent.

    `names`: the tensors to look at, all of them by default.
    """
    names = table.names if names is None else names
    check_names(names, {name for name in expected if name in names or name not in optional}, table.where)
    for name in sorted(names):
        if table.shape(name) != expected[name]:
            raise CheckpointError(shape_message(table.where, name, table.shape(name), expected[name]))
        if table.dtype(name) is None:
            raise CheckpointError(f"{table.where}: tensor {name!r} is not of a floating dtype")


def read_finite(table: TensorTable, name: str, dtype: torch.dtype) -> Tensor:
    """One tensor as `dtype`. Raises CheckpointError if a value is infinite, not a number, or becomes it."""
    tensor = table.read(name).to(dtype)
    require_finite(tensor, name, table.where)
    return tensor
