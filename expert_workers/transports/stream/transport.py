"""StreamTransport: a stream to each worker's process, over a Unix socket or over TCP, with TLS on request."""

import ssl

from expert_workers.tls import check_own, context
from expert_workers.transports.base import NO_OPTIONS, Site, TransportOptions
from expert_workers.transports.stream.auth import Endpoint
from expert_workers.transports.stream.connect import open_link
from expert_workers.transports.stream.connection import StreamConnection
from expert_workers.transports.stream.plane import StreamPlane
from expert_workers.transports.stream.serve_loop import loop_of
from expert_workers.transports.stream.server import StreamServer
from expert_workers.worker.expert_worker import ExpertWorker


class StreamTransport:
    """A Transport. `use_unix` False: by TCP also on the same machine."""

    spans_processes = True

    def __init__(self, options: TransportOptions = NO_OPTIONS, use_unix: bool = True) -> None:
        """Raises ConfigError for TLS files that cannot be used, before any worker is started."""
        self._options = options
        self._use_unix = use_unix
        self._client_tls: ssl.SSLContext | None = None
        self.certificate_end: float | None = None
        self._tls_of_links()

    def __getstate__(self) -> dict[str, object]:
        """A copy for another process reads the files there."""
        return {**self.__dict__, "_client_tls": None, "certificate_end": None}

    def serve(self, worker: ExpertWorker, site: Site) -> StreamServer:
        """As Transport; raises ConfigError too."""
        paths = self._options.tls
        tls = None if paths is None else context(paths, is_server=True)
        self.certificate_end = None if paths is None else check_own(paths)
        return StreamServer(
            worker,
            site.host,
            tls,
            prepare_thread=site.prepare_thread,
            loop=loop_of(worker),
            ports=site.ports,
        )

    def connect(self, rank: int, endpoint: Endpoint, timeout: float) -> StreamConnection:
        return open_link(rank, endpoint, self._tls_of_links(), self._use_unix, timeout)

    def plane(self) -> StreamPlane:
        return StreamPlane()

    def _tls_of_links(self) -> ssl.SSLContext | None:
        """Read once: links are opened also when the files are gone."""
        if self._client_tls is None and self._options.tls is not None:
            self._client_tls = context(self._options.tls, is_server=False)
            self.certificate_end = check_own(self._options.tls)
        return self._client_tls
