"""Reads what `serve --record-routing` has written, block by block: a file may be larger than memory, may end in
the middle of a block where a server was killed, and may be anything else.

Shapes: T tokens, L MoE layers, E experts, K experts per token.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import numpy as np
from msgspec import Meta, Struct

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
from moe_model.errors import ConfigError
from scaling.strict import convert

# Bytes of one sequence's ids that a reader puts together.
MAX_SEQUENCE_BYTES = 1 << 30
MAX_OPEN = 1 << 20


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """`model`: the fingerprint of the checkpoint; `moe_layers`: the numbers of the layers that have experts;
    `most_tokens`: the bound that recording had. `num_experts` is of a layer, ids are below."""

    version: Annotated[int, Meta(ge=1, le=1)]
    name: str
    model: str
    moe_layers: Annotated[tuple[int, ...], Meta(min_length=1, max_length=65535)]
    num_experts: Annotated[int, Meta(ge=1, le=65534)]
    top_k: Annotated[int, Meta(ge=1, le=255)]
    most_tokens: int
    made_by: str
    started_at: str


class Recorded(Struct, frozen=True):
    """One sequence. `request` counts requests from 0 in the order in which they began, `index` a request's
    sequences. `ids_TLK`, uint16, is of all tokens but the last one, which no layer has seen; ABSENT in all
    places of a token whose routing is not in the file (`known_T`): it was in the prefix cache, or recording
    had stopped. `is_whole`: the sequence ended while it was recorded."""

    request: int
    index: int
    version: int
    num_prompt: int
    ids_TLK: np.ndarray
    known_T: np.ndarray
    is_whole: bool


class _Open:
    """A sequence whose end was not read yet."""

    def __init__(self, request: int, index: int, version: int, num_prompt: int) -> None:
        self.request, self.index, self.version, self.num_prompt = request, index, version, num_prompt
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
        is_whole = num_tokens is not None
        return Recorded(
            *(self.request, self.index, self.version, self.num_prompt), all_TLK, known_T, is_whole
        )


class TraceFile:
    """One file, which is read anew by each method. `is_cut` is known once it was read: the last block is not
    whole."""

    def __init__(self, path: Path, header: Header, begins_at: int) -> None:
        self.path = path
        self.header = header
        self.is_cut = False
        self._begins_at = begins_at

    @classmethod
    def open(cls, path: Path) -> "TraceFile":
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
            header = convert(msgspec.json.decode(data), Header, str(path))
        except (msgspec.DecodeError, RecursionError) as error:
            raise ConfigError(f"{path}: a routing trace whose header is broken") from error
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

    def counts(self) -> np.ndarray:
        """How many rows each expert got: counts_LE, int64."""
        num_layers, num_experts = len(self.header.moe_layers), self.header.num_experts
        counts_LE = np.zeros((num_layers, num_experts), dtype=np.int64)
        for ids_TLK in self.rows():
            counts_LE += count_rows(ids_TLK, num_experts)
        return counts_LE

    def shares(self) -> list[list[float]]:
        """Shares of a layer's rows: shares_LE. Raises ConfigError where there are no rows."""
        counts_LE = self.counts()
        if not counts_LE.sum():
            raise ConfigError(f"{self.path}: has no rows: no request was served while it was recorded")
        shares: list[list[float]] = (counts_LE / counts_LE.sum(1, keepdims=True).clip(min=1)).tolist()
        return shares

    def some_rows(self, num_rows: int) -> np.ndarray:
        """ids_RLK, uint16, of at most so many tokens, spread over the whole file (the same ones each time); the
        number of experts where a token has fewer. Raises ConfigError where there are no rows."""
        rng, kept, seen = np.random.default_rng(0), None, 0
        for ids_TLK in self.rows():
            # Each token has a random number; those with the lowest are kept.
            drawn_T = rng.random(len(ids_TLK))
            seen += len(ids_TLK)
            if kept is None:
                kept = drawn_T, ids_TLK
            else:
                most_k = max(kept[1].shape[2], ids_TLK.shape[2])
                kept = (
                    np.concatenate([kept[0], drawn_T]),
                    np.concatenate([_widened(kept[1], most_k), _widened(ids_TLK, most_k)]),
                )
            if len(kept[0]) > num_rows:
                lowest = np.argpartition(kept[0], num_rows)[:num_rows]
                kept = kept[0][lowest], kept[1][lowest]
        if kept is None:
            raise ConfigError(f"{self.path}: has no rows: no request was served while it was recorded")
        return np.where(kept[1] == ABSENT, np.uint16(self.header.num_experts), kept[1])

    def _next(self, file: BinaryIO) -> Block | None:
        head = file.read(BLOCK_HEAD.size)
        if not head:
            return None
        if len(head) < BLOCK_HEAD.size:
            self.is_cut = True
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
        if ((block.ids_TLK >= self.header.num_experts) & (block.ids_TLK != ABSENT)).any():
            raise ValueError(f"an expert that is not below {self.header.num_experts}")
        return block


def count_rows(ids_TLK: np.ndarray, num_experts: int) -> np.ndarray:
    """counts_LE, int64; absent ones do not count."""
    num_layers = ids_TLK.shape[1]
    # One more column, for absent ones.
    columns_TLK = np.minimum(ids_TLK, num_experts).astype(np.int64)
    columns_TLK += np.arange(num_layers)[None, :, None] * (num_experts + 1)
    counts = np.bincount(columns_TLK.ravel(), minlength=num_layers * (num_experts + 1))
    return counts.reshape(num_layers, num_experts + 1)[:, :num_experts]


def _widened(ids_TLK: np.ndarray, top_k: int) -> np.ndarray:
    missing = top_k - ids_TLK.shape[2]
    return np.pad(ids_TLK, ((0, 0), (0, 0), (0, missing)), constant_values=ABSENT)


def _ended(block: Block, open_sequences: dict[int, _Open], num_layers: int) -> Iterator[Recorded]:
    """Those that end in this block."""
    row = 0
    for kind, _, index, number, first, count, version in block.entries.tolist():
        if kind == BEGIN:
            if number in open_sequences or len(open_sequences) >= MAX_OPEN:
                raise ValueError(f"sequence {number} begins twice, or too many are open")
            open_sequences[number] = _Open(first, index, version, count)
            continue
        if number not in open_sequences:
            raise ValueError(f"sequence {number} has not begun")
        if kind == ROWS:
            # A copy: a view would keep all of its block.
            open_sequences[number].pieces.append((first, block.ids_TLK[row : row + count].copy()))
            row += count
        elif kind == END:
            yield open_sequences.pop(number).recorded(first, num_layers)
