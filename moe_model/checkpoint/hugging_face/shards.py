"""The tensors of a folder, in one safetensors file or in many that an index lists, as one table."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from moe_model.checkpoint.recognise import is_present, refuse_pointer
from moe_model.checkpoint.tensor_table import SafetensorsTable
from moe_model.errors import CheckpointError
from moe_model.files import strict_json
from moe_model.files.whole_file import read_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
# A plain name: an index must not lead out of its folder.
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")


class ShardedTable:
    """A TensorTable over all shards, whose headers have been read; a tensor is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError for files that are missing, or that are not as the index says."""
        self.where = str(folder)
        index = None if is_present(folder / WEIGHTS) else read_index(folder)
        files = {WEIGHTS} if index is None else set(index.values())
        self.files: Mapping[str, SafetensorsTable] = {name: _open(folder / name) for name in sorted(files)}
        if index is None:
            self._file_of = dict.fromkeys(self.files[WEIGHTS].names, WEIGHTS)
        else:
            _check_index(index, self.files, folder / INDEX)
            self._file_of = index
        self.names = frozenset(self._file_of)

    def file_of(self, name: str) -> str:
        """In which of `files` a tensor is."""
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._table_of(name).shape(name)

    def dtype(self, name: str) -> torch.dtype | None:
        return self._table_of(name).dtype(name)

    def code(self, name: str) -> str:
        """As `SafetensorsTable`."""
        return self._table_of(name).code(name)

    def read(self, name: str) -> Tensor:
        return self._table_of(name).read(name)

    def read_values(self, name: str, begin: int, count: int) -> Tensor:
        """As `SafetensorsTable`."""
        return self._table_of(name).read_values(name, begin, count)

    def _table_of(self, name: str) -> SafetensorsTable:
        return self.files[self._file_of[name]]


def _open(path: Path) -> SafetensorsTable:
    if not is_present(path):
        raise CheckpointError(f"{path}: is missing, and {INDEX} lists it")
    refuse_pointer(path)
    return SafetensorsTable(path)


def read_index(folder: Path) -> dict[str, str]:
    """Tensor -> file. Raises CheckpointError."""
    path = folder / INDEX
    if not is_present(path):
        others = " (PyTorch's own files are not read; save the model as safetensors)"
        hint = others if any(folder.glob("*.bin")) else ""
        raise CheckpointError(f"{folder}: has neither {WEIGHTS} nor {INDEX}{hint}")
    refuse_pointer(path)
    return parse_index(read_file(path, max_size=MAX_INDEX_BYTES, follow_links=True), path)


def parse_index(content: bytes | bytearray, path: Path) -> dict[str, str]:
    """As `read_index`, of what is in it. Raises CheckpointError naming `path`."""
    try:
        data = strict_json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    found = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path}: has no weight_map")
    for name, file in found.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise CheckpointError(f"{path}: tensor {name[:200]!r} is in no safetensors file of this folder")
    return found


def _check_index(index: Mapping[str, str], tables: Mapping[str, SafetensorsTable], path: Path) -> None:
    for name, file in index.items():
        if name not in tables[file].names:
            raise CheckpointError(f"{path}: tensor {name[:200]!r} is not in {file}")
