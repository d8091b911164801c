"""A whole Ray cluster of one machine, which takes seconds to start, and what it still has of ours."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.coordinator.api.certificates import write_private
from tests.integration.processes import children, wait_gone

_ACTORS = """
import sys, ray, logging
ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
for line in sys.stdin:
    print(" ".join(sorted(a["name"] for a in ray.util.list_named_actors(all_namespaces=True))), flush=True)
"""
# Seconds that Ray has to forget an actor that was ended.
_FORGOTTEN = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_listening(
    port: int, process: subprocess.Popen[bytes], timeout: float = 60.0, host: str = "127.0.0.1"
) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, "Ray ended"
        try:
            socket.create_connection((host, port), 1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"nothing listens on {port}")


@dataclass(frozen=True)
class Cluster:
    """A cluster of one machine, and what a process needs to join it."""

    address: str
    env: dict[str, str]
    process: subprocess.Popen[bytes]

    @property
    def gcs_pid(self) -> int:
        for pid in children(self.process.pid):
            if "gcs_server" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]:
                return pid
        raise AssertionError("no GCS")


@contextmanager
def cluster(folder: Path, num_cpus: int = 2) -> Iterator[Cluster]:
    """As `ray start --head` makes it, with a token in `folder`; nothing of it is left."""
    port, env = free_port(), with_token(folder)
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as temp:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *(f"--port={port}", f"--temp-dir={temp}", f"--num-cpus={num_cpus}"),
                # Its usual one may be another user's, whose cluster would keep this one from starting.
                f"--ray-client-server-port={free_port()}",
                *("--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **env},
        )
        try:
            wait_listening(port, process)
            yield Cluster(f"127.0.0.1:{port}", env, process)
        finally:
            below = children(process.pid)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            for pid in wait_gone(below):
                os.kill(pid, signal.SIGKILL)


class Actors:
    """The named actors of a shared cluster, as a process that is connected all the time sees them."""

    def __init__(self, shared: Cluster) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ACTORS, shared.address],
            env={**os.environ, **shared.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def left(self) -> list[str]:
        deadline = time.monotonic() + _FORGOTTEN
        while (names := self.names()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [f"actor {name}" for name in names]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def names(self) -> list[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line.endswith("\n"), "the process that looks has ended"
        return line.split()


def with_token(folder: Path, token: str | None = None) -> dict[str, str]:
    """The variables of a process with a token's file of its own."""
    folder.mkdir(exist_ok=True)
    path = write_private(folder / "token", (token or secrets.token_hex(32)).encode())
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
