"""`expertmesh serve` on the head of a cluster of emulated hosts."""

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from scaling.hosts.cluster import HostCluster
from scaling.hosts.namespaces import Host

START_TIMEOUT = 240.0
_END_TIMEOUT = 60.0
_KILL_TIMEOUT = 10.0
_LOG_END = 1500


def _workers(number: int, arguments: Sequence[str]) -> list[str]:
    """One for each host and bound to it: one that Ray may put anywhere can come back beside another. A plan
    binds them itself."""
    if number == 0 or any(each.startswith("--plan") for each in arguments):
        return [f"--workers={number}"]
    return ["--workers-per-node=1", f"--min-machines={number}"]


class HeadServer:
    """A context manager: the server is READY when its block begins, and has ended after it."""

    def __init__(
        self,
        cluster: HostCluster,
        checkpoint: Path,
        arguments: Sequence[str],
        log: Path,
        timeout: float = START_TIMEOUT,
    ) -> None:
        self._head: Host = cluster.head
        self._log, self._timeout = log, timeout
        self._command = [sys.executable, "-P", "-m", "expertmesh.cli", "serve", str(checkpoint.absolute())]
        # Plain, on an address that is not loopback: no other machine is on this network.
        self._command += ["--insecure", "--withdrawal-grace=0", *_workers(len(cluster.workers), arguments)]
        self._command += [
            f"--{name}-address={cluster.head.address}:0" for name in ("grpc", "http", "control")
        ]
        if cluster.ray is not None:
            self._command += [f"--ray-address={cluster.ray.address}"]
        self._command += arguments
        self._env = _plain_environment() if cluster.ray is None else cluster.ray.env
        self.addresses: dict[str, str] = {}
        self.ended_by_itself = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        """Raises RuntimeError with the end of the log."""
        with self._log.open("wb") as log:
            self._process = self._head.popen(
                *self._command, stdout=subprocess.PIPE, stderr=log, env=self._env
            )
        try:
            line = self._ready_line()
            if not line.startswith("READY "):
                raise RuntimeError(f"the server did not start: {self._log_end()}")
            self.addresses = dict(part.split("=", 1) for part in line.split()[1:])
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """By SIGTERM, which also ends the workers; by SIGKILL where that takes too long."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.ended_by_itself = False
            self._process.kill()
            self._process.wait(_KILL_TIMEOUT)
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _ready_line(self) -> str:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout):
                raise RuntimeError(f"the server was not ready after {self._timeout:g} s: {self._log_end()}")
        return self._process.stdout.readline().decode()

    def _log_end(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-_LOG_END:].strip()


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
