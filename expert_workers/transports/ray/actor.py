"""ExpertActor: the process around an ExpertWorker, as Ray starts it; and what kills one from nearby.

It begins empty: whatever could fail is asked for by the supervisor, so that Ray never starts in a loop what
cannot start. Several of its methods may run at once.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced

import ray

from expert_workers.processes import Process, kill_and_wait
from expert_workers.transports.frame import decode_call, encode, reply_frame
from expert_workers.transports.stream.auth import Endpoint
from expert_workers.transports.stream.server import StreamServer
from expert_workers.transports.stream.tls import TlsPaths, context
from expert_workers.wire import Array
from expert_workers.worker.expert_worker import ExpertWorker, WorkerInfo, WorkerSpec
from moe_model.errors import FencedError
from moe_model.kernels.choice import set_torch_threads
from moe_model.layers.dispatch import ExpertKey
from moe_model.machine import usable_cores
from moe_model.versions.expert_versions import ExpertModule

# Seconds without a word from it after which a coordinator is no longer there.
LEASE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DataPlane:
    """How workers listen for streams. `host` None: on their node's address in the cluster."""

    host: str | None = "127.0.0.1"
    tls: TlsPaths | None = None


class ExpertActor:
    """Frames in, frames out, by Ray's calls or over a stream; everything else by Ray's calls.

    Decorated where it is used and not here, so that Ray finds it by its name and does not pickle its code.
    """

    def __init__(self, spec: WorkerSpec, data_plane: DataPlane) -> None:
        self._spec = spec
        self._num_threads = spec.num_threads or usable_cores().number
        self._data_plane = data_plane
        self._worker = ExpertWorker(spec)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._server: StreamServer | None = None
        self._prepared = threading.local()
        self._owner = ""
        self._heard = 0.0

    def compute(self, frame: bytes) -> bytes:
        self._prepare()
        return encode(reply_frame(self._worker.compute(decode_call(frame))))

    def endpoint(self) -> Endpoint:
        """Nobody listens before somebody asks."""
        with self._lock:
            if self._server is None:
                paths = self._data_plane.tls
                tls = None if paths is None else context(paths, is_server=True)
                host, worker = self._data_plane.host or self._host, self._worker
                self._server = StreamServer(
                    worker, host, tls, prepare_thread=self._set_threads, loop=worker.loop
                )
            return self._server.endpoint

    def describe(self, owner: str = "") -> WorkerInfo:
        """`owner` is whoever asks; the one that has claimed the worker is heard of by this."""
        with self._lock:
            if owner and self._owner and owner != self._owner:
                raise FencedError(f"worker {self._spec.rank}: {self._owner} has taken it over")
            if owner == self._owner:
                self._heard = time.monotonic()
        return replaced(self._worker.describe(), node_id=self._node_id, host=self._host)

    def claim(self, epoch: int, owner: str, by_force: bool) -> None:
        """The owner's from now on, unless another one is alive."""
        with self._lock:
            if self._owner not in ("", owner) and not by_force and self._is_owned():
                who = f"worker {self._spec.rank}: is in use by {self._owner}"
                raise FencedError(f"{who}: stop that one first, or take over from it (--take-over)")
            self._worker.claim(epoch)
            self._owner, self._heard = owner, time.monotonic()

    def load(self, modules: Sequence[ExpertModule]) -> WorkerInfo:
        self._prepare()
        self._worker.load(modules)
        return self.describe()

    def unload(self, keys: Sequence[ExpertKey]) -> WorkerInfo:
        self._worker.unload(keys)
        return self.describe()

    def canary(self, keys: Sequence[ExpertKey]) -> dict[ExpertKey, Array]:
        self._prepare()
        return self._worker.canary(keys)

    def die(self, pid: int) -> None:
        """At once, with nothing tidied up; unless it is another process by now."""
        if pid == os.getpid():
            os.kill(pid, signal.SIGKILL)

    def _is_owned(self) -> bool:
        """A coordinator that ends closes its streams; one that has none speaks now and then."""
        if self._server is not None and self._server.num_connections == 0:
            return False
        return time.monotonic() - self._heard < LEASE_SECONDS

    def _prepare(self) -> None:
        if not hasattr(self._prepared, "is_done"):
            self._set_threads()
            self._prepared.is_done = True

    def _set_threads(self) -> None:
        """Ray tells an actor without CPUs of its own to use one; and torch keeps it for each thread."""
        set_torch_threads(self._spec.kernels, self._spec.device, self._num_threads)


class NodeAgent:
    """On a machine with workers, for what only a neighbour can do."""

    def kill(self, pid: int, started: int) -> bool:
        """SIGKILLs that process and no later one with its pid; whether it is gone."""
        return not kill_and_wait(frozenset([Process(pid, started)]), 5.0)
