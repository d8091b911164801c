"""Files of a checkpoint from the machines of the cluster that have them, by calls of Ray's actors.

Those who let us in are those who may have the weights: Ray's token, and its TLS where it is on.
"""

import hashlib
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from expert_workers.cluster.ray_errors import first_line
from expert_workers.worker.offer import Lender
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.halt import Halt
from moe_model.remote.source import Range

# On the coordinator's machine; a namespace has one coordinator.
FILE_SERVER = "checkpoint-files"
# Threads of their own in the actors that lend: one that waits for its turn keeps no heartbeat waiting.
LENDING, NUM_LENDING = "lending", 4
# Seconds for an answer of at most 16 MiB; the holder of a copy is asked for less long than the last resort.
_HOLDER_TIMEOUT, _SERVER_TIMEOUT = 5.0, 60.0


# Ranges of a file, each with its SHA-256: what is under way has no better sum than TCP's.
Lent = list[tuple[bytes, bytes]]


def summed(found: Sequence[bytes] | None) -> Lent | None:
    """As it is sent."""
    return None if found is None else [(data, hashlib.sha256(data).digest()) for data in found]


class FileServer:
    """An actor on the coordinator's machine, which lends what the coordinator has. It begins empty: of an
    actor that cannot be made, Ray does not say why in one line."""

    def __init__(self, folder: str, bytes_per_second: float | None) -> None:
        self._folder, self._bytes_per_second = Path(folder), bytes_per_second
        self._lock = threading.Lock()
        self._lender: Lender | None = None

    def lend(self, name: str, ranges: Sequence[Range], is_urgent: bool) -> Lent | None:
        """As Lender. Raises ExpertMeshError."""
        return summed(self._opened().lend(name, ranges, is_urgent=is_urgent))

    def _opened(self) -> Lender:
        with self._lock:
            if self._lender is None:
                self._lender = Lender(Checkpoint.open(self._folder), None, self._bytes_per_second)
            return self._lender


class RayPeers:
    """A RangeSource. Workers that hold the same experts are asked first, so that the coordinator's link is
    spared; then the coordinator's machine, which has everything."""

    where = "the machines of the cluster"

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._holders: tuple[str, ...] = ()
        self._is_urgent = True

    def ask(self, holders: Sequence[str], *, is_urgent: bool) -> None:
        """From now on these actors, before the coordinator's machine."""
        self._holders, self._is_urgent = tuple(holders), is_urgent

    def read(self, name: str, ranges: Sequence[Range], halt: Halt) -> Sequence[bytes]:
        """As RangeSource."""
        holders = list(self._holders)
        random.shuffle(holders)
        for holder in holders:
            halt.check()
            found = self._ask(holder, name, ranges, _HOLDER_TIMEOUT)
            if isinstance(found, list):
                return found
            if isinstance(found, RayError):
                # It has died, or is too busy: it is not asked again for this load.
                self._holders = tuple(other for other in self._holders if other != holder)
        halt.check()
        found = self._ask(FILE_SERVER, name, ranges, _SERVER_TIMEOUT)
        if isinstance(found, list):
            return found
        reason = "has not got it any more" if found is None else first_line(found)
        raise CheckpointError(f"{name}: the coordinator's machine does not send it: {reason}")

    def _ask(
        self, actor: str, name: str, ranges: Sequence[Range], timeout: float
    ) -> list[bytes] | Exception | None:
        try:
            handle: Any = ray.get_actor(actor, namespace=self._namespace)
            lend = handle.lend.options(concurrency_group=LENDING)
            found = ray.get(lend.remote(name, list(ranges), self._is_urgent), timeout=timeout)
        except RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else error
        except (RayError, ValueError) as error:
            return error
        return checked(found, ranges)


def checked(found: object, ranges: Sequence[Range]) -> list[bytes] | None:
    """What was lent, if it is what was asked for and has arrived as it was sent."""
    if not isinstance(found, list) or len(found) != len(ranges):
        return None
    whole = list[bytes]()
    for each, (begin, end) in zip(found, ranges, strict=True):
        if not isinstance(each, tuple) or len(each) != 2:
            return None
        data, sha256 = each
        is_right = isinstance(data, bytes) and len(data) == end - begin
        if not is_right or hashlib.sha256(data).digest() != sha256:
            return None
        whole.append(data)
    return whole
