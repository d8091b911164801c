"""A state dict that torch.load has mapped, as a table of tensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from moe_model.checkpoint.importer.mapped import copy_mapped
from moe_model.checkpoint.tensor_table import FLOAT_CODES
from moe_model.errors import CheckpointError
from moe_model.files.whole_file import reason


class DictTable:
    """A state dict that torch.load has mapped: a tensor's bytes are read when it is asked for.

    `where` is the file.
    """

    def __init__(self, where: str, tensors: object) -> None:
        if not isinstance(tensors, Mapping):
            raise CheckpointError(f"{where}: expected a state dict, got {type(tensors).__name__}")
        for name, value in tensors.items():
            if not isinstance(name, str):
                raise CheckpointError(f"{where}: a tensor's name is of type {type(name).__name__}")
            if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
                raise CheckpointError(f"{where}: {name[:200]!r} is not a dense tensor")
            # One number may be said to be a million of them, by a stride of 0.
            if value.nbytes > value.untyped_storage().nbytes():
                raise CheckpointError(
                    f"{where}: tensor {name[:200]!r} has more values than the file has for it"
                )
        self.where = where
        self._tensors: dict[str, Tensor] = {name: value.detach() for name, value in tensors.items()}
        self._size = self._num_bytes()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype | None:
        dtype = self._tensors[name].dtype
        return dtype if dtype in FLOAT_CODES.values() else None

    def read(self, name: str) -> Tensor:
        """Raises CheckpointError when the file has become shorter."""
        tensor = copy_mapped(self._tensors[name])
        # Beyond the end of a file that was cut the rest of the last page reads as zeros.
        if tensor is None or self._num_bytes() != self._size:
            raise CheckpointError(f"{self.where}: was cut short while it was read")
        return tensor

    def _num_bytes(self) -> int:
        try:
            return Path(self.where).stat().st_size
        except OSError as error:
            raise CheckpointError(f"{self.where}: {reason(error)}") from None
