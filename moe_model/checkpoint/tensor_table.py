"""Named tensors of one source file, read one by one, and the check that they are the expected ones."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from io import FileIO
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
from moe_model.files.whole_file import read_at, reason

SAFETENSORS_SUFFIX = ".safetensors"
FLOAT_CODES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


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
    """A safetensors file, opened once and read tensor by tensor; never mapped."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.where = str(path)
        self._path = path
        self._file = stack.enter_context(_opened(path))
        size = os.fstat(self._file.fileno()).st_size
        start = read_at(self._file, 0, min(8, size), path)
        start += read_at(self._file, 8, header_length(start, size, self.where), path)
        header, self._start = read_header(start, size, self.where)
        self._entries = read_entries(header, size - self._start, self.where)
        self.names = frozenset(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype | None:
        return FLOAT_CODES.get(self._entries[name].dtype)

    def read(self, name: str) -> Tensor:
        entry = self._entries[name]
        data = read_at(self._file, self._start + entry.begin, entry.end - entry.begin, self._path)
        dtype = FLOAT_CODES[entry.dtype]
        return torch.frombuffer(data, dtype=dtype).view(entry.shape) if data else torch.empty(entry.shape)


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


def _opened(path: Path) -> FileIO:
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a file")
    try:
        return FileIO(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from None


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
