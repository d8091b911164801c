"""Reads a routing trace block by block: it may be larger than memory, may end in the middle of a block where
a server was killed, and may be anything else.

Shapes: T tokens, L layers that have experts, E experts, K experts per token.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from coordinator.engine.recording.trace_format import (
    ABSENT,
    BEGIN,
    BLOCK_HEAD,
    BLOCK_MAGIC,
    END,
    LENGTH,
    MAGIC,
    MAX_BLOCK,
    MAX_HEADER,
    ROWS,
    Block,
    unpack_block,
)
from moe_model.checks import check_count
from moe_model.errors import ConfigError
from moe_model.files.strict_json import loads

# Bytes of one sequence's ids that a reader puts together, and sequences whose end was not read yet.
MAX_SEQUENCE_BYTES, MAX_OPEN = 1 << 30, 1 << 20
MAX_LAYERS = 1 << 10
_TEXTS = ("name", "model", "made_by", "started_at")
_LIMITS = {"version": 1, "num_experts": ABSENT - 1, "top_k": 255, "most_tokens": 1 << 62}


@dataclass(frozen=True, slots=True)
class Header:
    """`model`: the fingerprint of the checkpoint, `name`: its folder's; `moe_layers`: the numbers of the
    layers that have experts; `num_experts`: ids are below,
    but for experts that were added while it was recorded; `most_tokens`: the bound that recording had."""

    version: int
    name: str
    model: str
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    most_tokens: int
    made_by: str
    started_at: str

    @classmethod
    def read(cls, data: bytes) -> "Header":
        """Raises ConfigError, ValueError."""
        found: Any = loads(data)
        names = {"moe_layers", *_TEXTS, *_LIMITS}
        if not isinstance(found, dict) or found.keys() != names:
            raise ValueError("a header with other fields")
        for name, limit in _LIMITS.items():
            check_count(name, found[name], limit)
        if not all(isinstance(found[name], str) for name in _TEXTS):
            raise ValueError("a header whose texts are none")
        layers = found["moe_layers"]
        if not isinstance(layers, list) or not 0 < len(layers) <= MAX_LAYERS:
            raise ValueError("a header without layers")
        if any(type(each) is not int for each in layers) or sorted({*layers}) != layers or layers[0] < 0:
            raise ValueError("a header whose layers are not in order")
        return cls(**{**found, "moe_layers": tuple(layers)})


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """One sequence. `number`: of the sequence in its engine; `request` counts requests from 0, in the order
    in which they began, `index` a request's sequences. `ids_TLK`, uint16, is of all tokens but the last one,
    which no layer has seen; ABSENT in all places of a token whose routing is not in the file (`known_T`): it
    was in the prefix cache, or recording had stopped. `is_whole`: the sequence ended while it was
    recorded."""

    number: int
    request: int
    index: int
    version: int
    num_prompt: int
    ids_TLK: np.ndarray
    known_T: np.ndarray
    is_whole: bool


class TraceReader:
    """One file, which is read anew by each method. `is_cut` is known once it was read: whether the last block
    is not whole."""

    def __init__(self, path: Path, header: Header, begins_at: int) -> None:
        self.path = path
        self.header = header
        self.is_cut = False
        self._begins_at = begins_at

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises ConfigError, a line that names the file."""
        try:
            with path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise ConfigError(f"{path}: no routing trace of `expertmesh serve --record-routing`")
                found = file.read(LENGTH.size)
                length = LENGTH.unpack(found)[0] if len(found) == LENGTH.size else 0
                data = file.read(length) if 0 < length <= MAX_HEADER else b""
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        try:
            header = Header.read(data)
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"{path}: a routing trace whose header is broken: {error}") from error
        return cls(path, header, len(MAGIC) + LENGTH.size + length)

    def blocks(self) -> Iterator[Block]:
        """Raises ConfigError for what no server has written."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._begins_at)
                while (block := self._next(file)) is not None:
                    yield block
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{self.path}: {error}") from error

    def rows(self) -> Iterator[np.ndarray]:
        """ids_TLK of each block, whatever their sequences."""
        for block in self.blocks():
            if len(block.ids_TLK):
                yield block.ids_TLK

    def requests(self) -> Iterator[Recorded]:
        """Sequences as they end, then those that did not. Raises ConfigError."""
        num_layers = len(self.header.moe_layers)
        open_sequences: dict[int, _Open] = {}
        try:
            for block in self.blocks():
                yield from _ended(block, open_sequences, num_layers)
            for sequence in open_sequences.values():
                yield sequence.recorded(None, num_layers)
        except ValueError as error:
            raise ConfigError(f"{self.path}: {error}") from error

    def _next(self, file: BinaryIO) -> Block | None:
        head = file.read(BLOCK_HEAD.size)
        if len(head) < BLOCK_HEAD.size:
            self.is_cut = bool(head)
            return None
        magic, length, num_unpacked, checksum = BLOCK_HEAD.unpack(head)
        if magic != BLOCK_MAGIC or length > MAX_BLOCK or num_unpacked > MAX_BLOCK:
            raise ValueError("a block that is none")
        data = file.read(length)
        if len(data) < length:
            self.is_cut = True
            return None
        if zlib.crc32(data) != checksum:
            raise ValueError("a block whose sum is another one")
        block = unpack_block(data, num_unpacked)
        if block.ids_TLK.shape[1] != len(self.header.moe_layers):
            raise ValueError("rows of another number of layers")
        # Later versions of a model may have experts that were added.
        strange = (block.ids_TLK >= self.header.num_experts) & (block.ids_TLK != ABSENT)
        if strange.any() and not block.entries["version"].any():
            raise ValueError(f"an expert that is not below {self.header.num_experts}")
        return block


class _Open:
    """A sequence whose end was not read yet."""

    def __init__(self, number: int, request: int, index: int, version: int, num_prompt: int) -> None:
        self.names = number, request, index, version, num_prompt
        self.pieces: list[tuple[int, np.ndarray]] = []

    def recorded(self, num_tokens: int | None, num_layers: int) -> Recorded:
        """`num_tokens` None: it did not end. Raises ValueError for one too long."""
        reached = max((first + len(ids_TLK) for first, ids_TLK in self.pieces), default=0)
        num_routed = reached if num_tokens is None else max(reached, num_tokens - 1, 0)
        top_k = max((ids_TLK.shape[2] for _, ids_TLK in self.pieces), default=1)
        if 2 * num_routed * num_layers * top_k > MAX_SEQUENCE_BYTES:
            raise ValueError(f"a sequence of {num_routed} tokens")
        all_TLK = np.full((num_routed, num_layers, top_k), ABSENT, dtype=np.uint16)
        known_T = np.zeros(num_routed, dtype=bool)
        for first, ids_TLK in self.pieces:
            all_TLK[first : first + len(ids_TLK), :, : ids_TLK.shape[2]] = ids_TLK
            known_T[first : first + len(ids_TLK)] = True
        return Recorded(*self.names, all_TLK, known_T, num_tokens is not None)


def _ended(block: Block, open_sequences: dict[int, _Open], num_layers: int) -> Iterator[Recorded]:
    """Those that end in this block."""
    row = 0
    for kind, _, index, number, first, count, version in block.entries.tolist():
        if kind == BEGIN:
            if number in open_sequences or len(open_sequences) >= MAX_OPEN:
                raise ValueError(f"sequence {number} begins twice, or too many are open")
            open_sequences[number] = _Open(number, first, index, version, count)
            continue
        if number not in open_sequences:
            raise ValueError(f"sequence {number} has not begun")
        if kind == ROWS:
            # A copy: a view would keep all of its block.
            open_sequences[number].pieces.append((first, block.ids_TLK[row : row + count].copy()))
            row += count
        elif kind == END:
            yield open_sequences.pop(number).recorded(first, num_layers)
