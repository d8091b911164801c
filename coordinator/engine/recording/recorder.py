"""Writes which experts every token was routed to: the engine hands rows over, a thread packs and writes them.

What goes wrong with the file ends the recording, never a request. Shapes: T tokens, L layers that have
experts, K experts per token.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import numpy as np

from coordinator.engine.core.sequence import Sequence as EngineSequence
from coordinator.engine.core.step_result import RoutedRows
from coordinator.engine.recording.trace_format import ABSENT, BEGIN, END, ENTRY, ROWS, Block, pack_block
from moe_model.errors import ConfigError

logger = logging.getLogger(__name__)

# Bytes of a block before it is packed, and seconds until a smaller one is written.
BLOCK_BYTES, BLOCK_SECONDS = 1 << 18, 1.0
# What may wait for the disk.
MAX_WAITING_BYTES = 64 << 20
CLOSE_TIMEOUT = 10.0
MOST_FILES = 1000

_Entry = tuple[int, int, int, int, int, int, int]


class _Told(NamedTuple):
    """Of one step, or of what ended after it."""

    entries: list[_Entry]
    rows: list[np.ndarray]
    num_bytes: int


def create(path: Path) -> tuple[Path, int]:
    """A new file, beside those that are there already, and its descriptor. Raises ConfigError."""
    for number in range(MOST_FILES):
        found = path if number == 0 else path.with_name(f"{path.name}.{number}")
        try:
            return found, os.open(found, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"--record-routing: {found}: {error.strerror}") from error
    raise ConfigError(f"--record-routing: {path}: {MOST_FILES} recordings are there already")


class RoutingRecorder:
    """Belongs to the engine's thread, but for `close`."""

    def __init__(
        self,
        path: Path,
        header: bytes,
        most_tokens: int,
        num_layers: int,
        told: Callable[[int, bool], None] = lambda _num, _is_written: None,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """`header` is packed. `told` hears, on either thread, of how many tokens were written, or not. Raises
        ConfigError where the file cannot be made."""
        self.path, self._file = create(path)
        self.is_on = self._has_begun = False
        self._most_tokens, self._num_layers, self._max_waiting = most_tokens, num_layers, max_waiting_bytes
        self._told = told
        self._num_tokens = self._num_requests = 0
        self._requests: dict[str, int] = {}
        self._open: dict[int, str] = {}
        self._ended: list[_Entry] = []
        self._queue: SimpleQueue[_Told | None] = SimpleQueue()
        # Bytes that were handed over, and that are written: each has one writer.
        self._given = self._taken = 0
        self._broken: str | None = None
        try:
            _write(self._file, header)
        except OSError as error:
            os.close(self._file)
            self.path.unlink(missing_ok=True)
            raise ConfigError(f"--record-routing: {self.path}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._run, name="record-routing", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Records from now on: an engine warms up first."""
        logger.info("routing is recorded to %s, at most %d tokens", self.path, self._most_tokens)
        self.is_on = self._has_begun = True

    def step(self, num_tokens: int, routed: Sequence[RoutedRows]) -> None:
        """Once a step of so many tokens has moved its sequences: only now it is known which of its drafts
        stand. Never raises."""
        if not self.is_on:
            if self._has_begun:
                self._told(num_tokens, False)
            return
        try:
            self._record(routed)
        except Exception as error:
            logger.exception("routing: a step cannot be recorded")
            self._stop(type(error).__name__)

    def _record(self, routed: Sequence[RoutedRows]) -> None:
        entries, self._ended = self._ended, []
        rows: list[np.ndarray] = []
        num_tokens = 0
        for each in routed:
            found = _new_rows(each)
            num_tokens += len(found[1])
            if len(found[1]):
                self._begin(each.sequence, entries)
                key, version = each.sequence.key, each.sequence.version
                entries.append((ROWS, 0, each.sequence.index, key, found[0], len(found[1]), version))
                rows.append(found[1])
        reason = self._reason_to_stop(num_tokens)
        if reason is not None:
            self._stop(reason)
            self._told(num_tokens, False)
            return
        self._num_tokens += num_tokens
        # The rows of a step are parts of one array, which waits as a whole.
        self._give(_Told(entries, rows, 2 * num_tokens * (rows[0][0].size if rows else 0)))

    def ended(self, sequence: EngineSequence) -> None:
        """It is written with what comes next."""
        request_id = self._open.pop(sequence.key, None)
        if request_id is None:
            return
        if request_id not in self._open.values():
            del self._requests[request_id]
        key, version = sequence.key, sequence.version
        self._ended.append((END, 0, sequence.index, key, len(sequence.token_ids), 0, version))
        if self.is_on and not self._open:
            self._give(_Told(self._ended, [], 0))
            self._ended = []

    def close(self) -> None:
        """What was handed over is on the disk, unless that takes too long."""
        if self.is_on and self._ended:
            self._give(_Told(self._ended, [], 0))
            self._ended = []
        self.is_on = False
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            logger.error("routing: %s is not whole: the disk takes too long", self.path)

    def _begin(self, sequence: EngineSequence, entries: list[_Entry]) -> None:
        if sequence.key in self._open:
            return
        request_id = sequence.request.request_id
        self._open[sequence.key] = request_id
        if request_id not in self._requests:
            self._requests[request_id] = self._num_requests
            self._num_requests += 1
        number, num_prompt = self._requests[request_id], len(sequence.request.prompt_ids)
        entries.append((BEGIN, 0, sequence.index, sequence.key, number, num_prompt, sequence.version))

    def _reason_to_stop(self, num_tokens: int) -> str | None:
        if self._broken is not None:
            return self._broken
        if self._num_tokens + num_tokens > self._most_tokens:
            return f"{self._num_tokens} tokens are written, --record-routing-tokens {self._most_tokens}"
        if self._given - self._taken > self._max_waiting:
            return f"{self._max_waiting >> 20} MiB wait for the disk, which is too slow"
        return None

    def _give(self, told: _Told) -> None:
        self._given += told.num_bytes
        self._queue.put(told)

    def _stop(self, reason: str) -> None:
        self.is_on = False
        self._queue.put(None)
        logger.warning("routing: recording to %s has stopped: %s; serving goes on", self.path, reason)

    def _run(self) -> None:
        """The thread that writes. At the end, or at the first error, it closes the file."""
        try:
            self._write_blocks()
        except OSError as error:
            self._broken = error.strerror or str(error)
        except Exception as error:
            logger.exception("routing: recording to %s failed", self.path)
            self._broken = type(error).__name__
        finally:
            os.close(self._file)

    def _write_blocks(self) -> None:
        is_over = False
        while not is_over:
            entries: list[_Entry] = []
            rows: list[np.ndarray] = []
            num_bytes, until = 0, time.monotonic() + BLOCK_SECONDS
            while num_bytes < BLOCK_BYTES and not is_over:
                told = self._next(until if entries else None)
                if told is None:
                    break
                is_over = told is _OVER
                entries += told.entries
                rows += told.rows
                num_bytes += told.num_bytes
            if entries:
                _write(self._file, pack_block(self._block(entries, rows)))
                self._told(sum(map(len, rows)), True)
                self._taken += num_bytes

    def _next(self, until: float | None) -> "_Told | None":
        """What was handed over; None: nothing until then."""
        try:
            wait = BLOCK_SECONDS if until is None else max(0.0, until - time.monotonic())
            found = self._queue.get(timeout=wait)
        except Empty:
            return None
        return _OVER if found is None else found

    def _block(self, entries: list[_Entry], rows: list[np.ndarray]) -> Block:
        ids_TLK = _joined(rows) if rows else np.empty((0, self._num_layers, 1), dtype=np.uint16)
        return Block(np.array(entries, dtype=ENTRY), ids_TLK)


_OVER = _Told([], [], 0)


def _new_rows(routed: RoutedRows) -> tuple[int, np.ndarray]:
    """What is not recorded yet, and stands: the first position, ids_TLK."""
    sequence, first = routed.sequence, routed.first_position
    end = first + len(routed.ids_TLK)
    if routed.num_drafted:
        # Not of what was drafted and is not there, and the last token has not been routed.
        end = min(end, len(sequence.token_ids) - 1)
    skip = max(0, sequence.num_recorded - first)
    sequence.num_recorded = max(sequence.num_recorded, end)
    return first + skip, routed.ids_TLK[skip : max(skip, end - first)]


def _joined(rows: Sequence[np.ndarray]) -> np.ndarray:
    """One after the other; where one has fewer places for a token than another, the rest is absent."""
    top_k = max(ids_TLK.shape[2] for ids_TLK in rows)
    padded = [
        ids_TLK
        if ids_TLK.shape[2] == top_k
        else np.pad(ids_TLK, ((0, 0), (0, 0), (0, top_k - ids_TLK.shape[2])), constant_values=ABSENT)
        for ids_TLK in rows
    ]
    return np.concatenate(padded)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
