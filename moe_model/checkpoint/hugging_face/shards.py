"""The tensors of a folder, in one safetensors file or in many that an index lists, as one table."""

import re
from contextlib import ExitStack
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
    """A TensorTable over all shards; every file is opened once, no tensor is read before it is asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Raises CheckpointError for files that are missing, or that are not as the index says."""
        self.where = str(folder)
        index = None if is_present(folder / WEIGHTS) else _read_index(folder / INDEX)
        files = {WEIGHTS} if index is None else set(index.values())
        tables = {name: _open(folder / name, stack) for name in sorted(files)}
        if index is None:
            self._table_of = dict.fromkeys(tables[WEIGHTS].names, tables[WEIGHTS])
        else:
            _check_index(index, tables, folder / INDEX)
            self._table_of = {name: tables[file] for name, file in index.items()}
        self.names = frozenset(self._table_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._table_of[name].shape(name)

    def dtype(self, name: str) -> torch.dtype | None:
        return self._table_of[name].dtype(name)

    def read(self, name: str) -> Tensor:
        return self._table_of[name].read(name)


def _open(path: Path, stack: ExitStack) -> SafetensorsTable:
    if not is_present(path):
        raise CheckpointError(f"{path}: is missing, and {INDEX} lists it")
    refuse_pointer(path)
    return SafetensorsTable(path, stack)


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> file."""
    if not is_present(path):
        others = " (PyTorch's own files are not read; save the model as safetensors)"
        hint = others if any(path.parent.glob("*.bin")) else ""
        raise CheckpointError(f"{path.parent}: has neither {WEIGHTS} nor {INDEX}{hint}")
    refuse_pointer(path)
    try:
        data = strict_json.loads(read_file(path, max_size=MAX_INDEX_BYTES, follow_links=True))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    found = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path}: has no weight_map")
    for name, file in found.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise CheckpointError(f"{path}: tensor {name[:200]!r} is in no safetensors file of this folder")
    return found


def _check_index(index: dict[str, str], tables: dict[str, SafetensorsTable], path: Path) -> None:
    for name, file in index.items():
        if name not in tables[file].names:
            raise CheckpointError(f"{path}: tensor {name[:200]!r} is not in {file}")
