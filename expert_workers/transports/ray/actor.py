"""ExpertActor: the process around an ExpertWorker, as Ray starts it; and what kills one from nearby.

It begins empty: whatever could fail is asked for by the supervisor, so that Ray never starts in a loop what
cannot start. Several of its methods may run at once.
"""

import os
import signal
import threading
from collections.abc import Hashable, Sequence
from dataclasses import replace as replaced

import ray

from expert_workers.cluster.data_ports import data_ports
from expert_workers.processes import Process, kill_and_wait
from expert_workers.transports.base import AnyTransport, Served, Site
from expert_workers.transports.frame import decode_call, encode, reply_frame
from expert_workers.transports.ray.links import ActorName
from expert_workers.transports.ray.peers import Lent, RayPeers, summed
from expert_workers.wire import Array
from expert_workers.worker.expert_source import CheckpointSource
from expert_workers.worker.expert_worker import ExpertWorker, WorkerInfo, WorkerSpec
from moe_model.kernels.choice import set_torch_threads
from moe_model.layers.dispatch import ExpertKey
from moe_model.machine import usable_cores
from moe_model.remote.source import Range
from moe_model.versions.expert_versions import ExpertModule


class ExpertActor:
    """A worker in a process of its own, served by a transport; everything else goes by Ray's calls.

    Decorated where it is used and not here, so that Ray finds it by its name and does not pickle its code.
    """

    def __init__(self, spec: WorkerSpec, transport: AnyTransport, host: str | None, name: ActorName) -> None:
        """`host` is where the transport may listen; None: the node's address in the cluster."""
        self._spec = spec
        self._num_threads = spec.num_threads or usable_cores().number
        self._peers = RayPeers(name.namespace)
        self._source = CheckpointSource(spec, self._peers)
        self._worker = ExpertWorker(spec, self._source)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._transport, self._site = transport, Site(host or self._host, self._set_threads, name)
        self._lock = threading.Lock()
        self._served: Served[Hashable] | None = None
        self._prepared = threading.local()

    def compute(self, frame: bytes) -> bytes:
        """A call and its reply as frames: what the links of the Ray transport ask for."""
        self._prepare()
        return encode(reply_frame(self._worker.compute(decode_call(frame))))

    def endpoint(self) -> Hashable:
        """Where this process is reached. It does not listen before it is first asked for this."""
        with self._lock:
            if self._served is None:
                site = replaced(self._site, ports=data_ports())
                self._served = self._transport.serve(self._worker, site)
            return self._served.endpoint

    def describe(self, client: str = "") -> WorkerInfo:
        """`client` has claimed the worker and lives; empty: anyone may ask. Raises FencedError."""
        if client:
            self._worker.heard(client)
        return replaced(
            self._worker.describe(),
            node_id=self._node_id,
            host=self._host,
            has_files=self._source.has_files,
            num_fetched=self._source.num_fetched,
            certificate_end=self._transport.certificate_end,
        )

    def claim(self, client: str, epoch: int, by_force: bool) -> None:
        """The client's from now on. Raises FencedError."""
        with self._lock:
            is_linked = self._served is None or self._served.num_links != 0
        self._worker.claim(client, epoch, by_force=by_force, is_linked=is_linked)

    def load(self, modules: Sequence[ExpertModule], holders: Sequence[str], is_urgent: bool) -> WorkerInfo:
        """`holders` are actors that may lend what the modules are read from, `is_urgent`: requests wait."""
        self._prepare()
        self._peers.ask(holders, is_urgent=is_urgent)
        self._source.hurry(is_urgent)
        self._worker.load(modules)
        return self.describe()

    def lend(self, name: str, ranges: Sequence[Range], is_urgent: bool) -> Lent | None:
        """As Lender: to another machine's worker."""
        return summed(self._source.lend(name, ranges, is_urgent=is_urgent))

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
