"""StreamTransport: a stream to each worker's process, over a Unix socket or over TCP, with TLS on request."""

from dataclasses import dataclass
from typing import ClassVar

from expert_workers.tls import context
from expert_workers.transports.base import NO_OPTIONS, Site, TransportOptions
from expert_workers.transports.stream.auth import Endpoint
from expert_workers.transports.stream.connect import open_link
from expert_workers.transports.stream.connection import StreamConnection
from expert_workers.transports.stream.plane import StreamPlane
from expert_workers.transports.stream.serve_loop import loop_of
from expert_workers.transports.stream.server import StreamServer
from expert_workers.worker.expert_worker import ExpertWorker


@dataclass(frozen=True, slots=True)
class StreamTransport:
    """A Transport. `use_unix` False: by TCP also on the same machine."""

    options: TransportOptions = NO_OPTIONS
    use_unix: bool = True
    spans_processes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raises ConfigError for TLS files that cannot be used, before any worker is started."""
        if self.options.tls is not None:
            context(self.options.tls, is_server=False)

    def serve(self, worker: ExpertWorker, site: Site) -> StreamServer:
        paths = self.options.tls
        tls = None if paths is None else context(paths, is_server=True)
        return StreamServer(worker, site.host, tls, prepare_thread=site.prepare_thread, loop=loop_of(worker))

    def connect(self, rank: int, endpoint: Endpoint, timeout: float) -> StreamConnection:
        paths = self.options.tls
        tls = None if paths is None else context(paths, is_server=False)
        return open_link(rank, endpoint, tls, self.use_unix, timeout)

    def plane(self) -> StreamPlane:
        return StreamPlane()
