"""Named tensors of one source file, read one by one, and the check that they are the expected ones."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import safetensors
import torch
from torch import Tensor

from moe_model.errors import CheckpointError
from moe_model.families import Shapes
from moe_model.files import reason
from moe_model.safetensors_file import check_names, header_length, read_header, shape_message

SAFETENSORS_SUFFIX = ".safetensors"
_FLOAT_CODES = {
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


class DictTable:
    """A state dict that torch.load has mapped: a tensor's bytes are read when they are used."""

    def __init__(self, where: str, tensors: object, prefix: str = "") -> None:
        if not isinstance(tensors, Mapping):
            raise CheckpointError(f"{where}: expected a state dict, got {type(tensors).__name__}")
        for name, value in tensors.items():
            if not isinstance(name, str):
                raise CheckpointError(f"{where}: a tensor's name is of type {type(name).__name__}")
            if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
                raise CheckpointError(f"{where}: {name[:200]!r} is not a dense tensor")
        self.where = where
        self._tensors: dict[str, Tensor] = {prefix + name: value.detach() for name, value in tensors.items()}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype | None:
        dtype = self._tensors[name].dtype
        return dtype if dtype in _FLOAT_CODES.values() else None

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


class SafetensorsTable:
    """A safetensors file, opened once and read tensor by tensor."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.where = str(path)
        _refuse_bad_header(path)
        try:
            self._file = stack.enter_context(safetensors.safe_open(path, framework="pt"))
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path}: {str(error).splitlines()[0][:200]}") from None
        self.names = frozenset(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype | None:
        return _FLOAT_CODES.get(self._file.get_slice(name).get_dtype())

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


def _refuse_bad_header(path: Path) -> None:
    """The library lets duplicate keys pass."""
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            start += file.read(header_length(start, size, str(path)))
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from None
    read_header(start, size, str(path))


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
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{table.where}: tensor {name!r} holds a value that is not finite as {dtype}")
    return tensor
