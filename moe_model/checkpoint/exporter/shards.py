"""Safetensors files whose headers are known before their tensors: written in any order, piece by piece.

A tensor of many items is never in memory as a whole, so a model's size does not matter.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from moe_model.checkpoint.exporter.layout import Planned
from moe_model.checkpoint.hugging_face.shards import INDEX, WEIGHTS
from moe_model.checkpoint.safetensors_file import DTYPE_CODES
from moe_model.errors import CheckpointError
from moe_model.files.whole_file import reason

_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class _Place:
    file: FileIO
    offset: int
    planned: Planned


class ShardWriter:
    """A context manager. Left cleanly, all files and the index that names them are durable in `folder`."""

    def __init__(self, folder: Path, tensors: Mapping[str, Planned], max_bytes: int) -> None:
        """No file has more than `max_bytes` of tensors, unless a single tensor is larger."""
        self._folder = folder
        self._shards = list(_split(tensors, max_bytes))
        self._tensors = tensors
        self._stack = ExitStack()
        self._places: dict[str, _Place] = {}
        self._missing = {name: planned.num_items or 1 for name, planned in tensors.items()}

    def __enter__(self) -> Self:
        with self._stack:
            for name, shard in self._named().items():
                self._open(self._folder / name, shard)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is not None:
                return
            left = next((name for name, count in self._missing.items() if count), None)
            assert left is None, f"{left}: was not written"
            for file in {place.file for place in self._places.values()}:
                os.fsync(file.fileno())
        if len(self._shards) > 1:
            write_durably(self._folder / INDEX, self._index())

    def write(self, name: str, item: int | None, tensor: Tensor) -> None:
        """Raises CheckpointError where the file cannot be written."""
        place = self._places[name]
        planned = place.planned
        assert tuple(tensor.shape) == planned.shape, name
        data = tensor.detach().to("cpu", planned.dtype).flatten().view(torch.uint8).numpy().data
        offset = place.offset + (item or 0) * len(data)
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(place.file.fileno(), data[done:], offset + done)
        except OSError as error:
            raise CheckpointError(f"{place.file.name!s}: cannot be written: {reason(error)}") from None
        self._missing[name] -= 1

    def _named(self) -> dict[str, list[str]]:
        count = len(self._shards)
        if count == 1:
            return {WEIGHTS: self._shards[0]}
        return {f"model-{i + 1:05d}-of-{count:05d}.safetensors": each for i, each in enumerate(self._shards)}

    def _index(self) -> bytes:
        total = sum(map(_num_bytes, self._tensors.values()))
        weight_map = {tensor: file for file, shard in self._named().items() for tensor in shard}
        return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2).encode()

    def _open(self, path: Path, shard: list[str]) -> None:
        header, offsets, position = {"__metadata__": {"format": "pt"}}, dict[str, int](), 0
        entries: dict[str, object] = dict(header)
        for name in shard:
            planned = self._tensors[name]
            offsets[name], end = position, position + _num_bytes(planned)
            entries[name] = {
                "dtype": DTYPE_CODES[planned.dtype],
                "shape": list(planned.full_shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        try:
            file = self._stack.enter_context(FileIO(path, "x"))
            os.pwrite(file.fileno(), len(text).to_bytes(8, "little") + text, 0)
            os.truncate(file.fileno(), 8 + len(text) + position)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {reason(error)}") from None
        for name, offset in offsets.items():
            self._places[name] = _Place(file, 8 + len(text) + offset, self._tensors[name])


def _num_bytes(planned: Planned) -> int:
    return prod(planned.full_shape) * planned.dtype.itemsize


def _split(tensors: Mapping[str, Planned], max_bytes: int) -> Iterator[list[str]]:
    """Names of each file, in their order."""
    shard: list[str] = []
    size = 0
    for name, planned in tensors.items():
        if shard and size + _num_bytes(planned) > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += _num_bytes(planned)
    yield shard


def write_durably(path: Path, data: bytes) -> None:
    """A new file. Raises CheckpointError."""
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {reason(error)}") from None
