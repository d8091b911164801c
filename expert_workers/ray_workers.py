"""Expert workers as Ray actors: starting, finding and ending them. Ray keeps them alive; we watch them.

The actors are detached and named, so they outlive the coordinator that started them, and Ray starts one again
whose process died: its constructor loads its experts anew.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError, RayError

from expert_workers.frame import decode_call, encode, reply_frame
from expert_workers.ray_cluster import is_reachable
from expert_workers.ray_transport import RayCallTransport, first_line
from expert_workers.stream_auth import Endpoint
from expert_workers.stream_server import StreamServer
from expert_workers.stream_tls import TlsPaths, context
from expert_workers.stream_transport import StreamTransport
from expert_workers.worker import ExpertWorker, WorkerInfo, WorkerSpec
from moe_model.dispatch import ExpertKey
from moe_model.errors import ClusterError, WorkerStartError
from moe_model.kernels.choice import set_torch_threads
from moe_model.modules import checkpoint_modules

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DataPlane:
    """How workers listen for streams. `host` None: on their node's address in the cluster."""

    host: str | None = "127.0.0.1"
    tls: TlsPaths | None = None


class ExpertActor:
    """The process around an ExpertWorker: frames in, frames out, by Ray's calls or over a stream.

    Decorated where it is used and not here, so that Ray finds it by its name and does not pickle its code.
    """

    def __init__(self, spec: WorkerSpec, data_plane: DataPlane, keys: Sequence[ExpertKey]) -> None:
        self._spec = spec
        self._num_threads = spec.num_threads or len(os.sched_getaffinity(0))
        self._data_plane = data_plane
        self._set_threads()
        self._worker = ExpertWorker(spec)
        self._worker.load(checkpoint_modules(keys))
        self._node_id = ray.get_runtime_context().get_node_id()
        self._server: StreamServer | None = None

    def compute(self, frame: bytes) -> bytes:
        return encode(reply_frame(self._worker.compute(decode_call(frame))))

    def endpoint(self) -> Endpoint:
        """Nobody listens before somebody asks."""
        if self._server is None:
            host = self._data_plane.host or str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
            paths = self._data_plane.tls
            tls = None if paths is None else context(paths, is_server=True)
            worker = self._worker
            self._server = StreamServer(worker, host, tls, prepare_thread=self._set_threads, loop=worker.loop)
        return self._server.endpoint

    def _set_threads(self) -> None:
        """Ray tells an actor without CPUs of its own to use one; and torch keeps it for each thread."""
        set_torch_threads(self._spec.kernels, self._spec.device, self._num_threads)

    def describe(self) -> WorkerInfo:
        return replaced(self._worker.describe(), node_id=self._node_id, host=socket.gethostname())


_NAME = "expert-worker-"


def actor_name(rank: int) -> str:
    return f"{_NAME}{rank}"


class RayWorkers:
    """The expert actors of one namespace, by rank."""

    def __init__(self, namespace: str, actors: Mapping[int, Any]) -> None:
        self.namespace = namespace
        self._actors = dict(actors)

    @classmethod
    def start(
        cls,
        specs: Sequence[WorkerSpec],
        keys: Sequence[Sequence[ExpertKey]],
        *,
        namespace: str,
        timeout: float = 120.0,
        replace: bool = False,
        data_plane: DataPlane | None = None,
    ) -> "RayWorkers":
        """Starts an actor per spec, all at once, and waits until each has loaded its experts, the `keys`.

        `replace` first ends all workers that run in the namespace, whatever their number. Raises ClusterError
        when names are taken or Ray cannot run the workers, WorkerStartError naming the worker, the file and
        the reason; nothing of ours is left then.
        """
        workers = cls(namespace, {})
        try:
            if replace:
                _end_existing(namespace)
            plane = data_plane or DataPlane()
            for spec, wanted in zip(specs, keys, strict=True):
                workers._actors[spec.rank] = _launch(spec, namespace, plane, wanted)
            workers._wait_ready(time.monotonic() + timeout, timeout)
        except BaseException:
            workers.close()
            raise
        return workers

    @classmethod
    def attach(cls, ranks: Sequence[int], *, namespace: str) -> "RayWorkers":
        """Finds workers that run already. Raises ClusterError naming the first that does not."""
        actors = {rank: _find(rank, namespace) for rank in ranks}
        for rank, actor in actors.items():
            if actor is None:
                raise ClusterError(f"no Ray actor {actor_name(rank)!r} in namespace {namespace!r}")
        return cls(namespace, actors)

    def call_transport(self) -> RayCallTransport:
        """A Ray call for each dispatch: slow, and simple."""
        return RayCallTransport(self._actors)

    def stream_transport(self, *, use_unix: bool = True, tls: TlsPaths | None = None) -> StreamTransport:
        """A stream to each worker's process; `use_unix` False goes by TCP also on the same machine.

        Raises ConfigError for files of `tls`, which is for TCP only.
        """
        client = None if tls is None else context(tls, is_server=False)
        return StreamTransport(RayCallTransport(self._actors), client, use_unix=use_unix)

    def close(self, timeout: float = 10.0) -> None:
        """Ends the actors and waits until Ray has let them go. Idempotent."""
        # Asked for anything while it is not connected, Ray would start a new cluster; without its head, hang.
        if not ray.is_initialized() or not is_reachable():
            return
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        deadline = time.monotonic() + timeout
        for rank in self._actors:
            _wait_unnamed(rank, self.namespace, deadline)
        self._actors.clear()

    def _wait_ready(self, deadline: float, timeout: float) -> None:
        waiting = {actor.describe.remote(): rank for rank, actor in self._actors.items()}
        while waiting:
            refs = list(waiting)
            ready, _ = ray.wait(refs, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                ranks = ", ".join(map(str, sorted(waiting.values())))
                raise WorkerStartError(f"worker {ranks}: not ready within {timeout:g} s")
            rank = waiting.pop(ready[0])
            try:
                ray.get(ready[0])
            except RayError as error:
                raise WorkerStartError(_start_failure(rank, error)) from None


def _launch(spec: WorkerSpec, namespace: str, data_plane: DataPlane, keys: Sequence[ExpertKey]) -> Any:
    name = actor_name(spec.rank)
    options = {
        "name": name,
        "namespace": namespace,
        "lifetime": "detached",
        "max_restarts": -1,
        "max_task_retries": 0,
        "num_cpus": 0,
        "scheduling_strategy": "SPREAD",
        # Ray would report each call to its dashboard.
        "enable_task_events": False,
    }
    try:
        return ray.remote(ExpertActor).options(**options).remote(spec, data_plane, keys)
    except ActorAlreadyExistsError:
        taken = f"Ray actor {name!r} exists already in namespace {namespace!r}"
        raise ClusterError(f"{taken}: use another namespace, or replace the workers that run there") from None
    except (RayError, ValueError) as error:
        raise ClusterError(f"worker {spec.rank}: Ray cannot start it: {first_line(error)}") from None


def _find(rank: int, namespace: str) -> Any:
    try:
        return ray.get_actor(actor_name(rank), namespace=namespace)
    except ValueError:
        return None


def _end_existing(namespace: str) -> None:
    named = ray.util.list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in named if actor["namespace"] == namespace]
    ranks = [int(name.removeprefix(_NAME)) for name in names if name.startswith(_NAME)]
    for rank in ranks:
        actor = _find(rank, namespace)
        if actor is not None:
            ray.kill(actor, no_restart=True)
    for rank in ranks:
        _wait_unnamed(rank, namespace, time.monotonic() + 10.0)


def _wait_unnamed(rank: int, namespace: str, deadline: float) -> None:
    while _find(rank, namespace) is not None:
        if time.monotonic() >= deadline:
            _log.error("Ray still lists actor %s after it was ended", actor_name(rank))
            return
        time.sleep(0.01)


def _start_failure(rank: int, error: RayError) -> str:
    """The line that the constructor raised: Ray only has it as the end of a traceback."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    _, found, ours = lines[-1].partition(f"{WorkerStartError.__name__}: ")
    return ours if found else f"worker {rank}: cannot start: {lines[-1].strip()}"
