"""Real Ray heads: a whole cluster, which takes seconds, and its GCS alone, a tenth of one."""

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from ray._private import services
from ray.core.generated import gcs_service_pb2

from tests.coordinator.api.certificates import Authority, write_private
from tests.integration.processes import children, wait_gone

MESSAGES: Any = gcs_service_pb2


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


@contextmanager
def head(folder: Path, environment: Mapping[str, str], host: str = "127.0.0.1") -> Iterator[int]:
    """Its port at `host`. `environment` is what it has of Ray's variables."""
    (folder / "session").mkdir(parents=True)
    port = free_port()
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [
                *(services.GCS_SERVER_EXECUTABLE, f"--gcs_server_port={port}", f"--node-ip-address={host}"),
                *(f"--log_dir={folder}", f"--session-dir={folder / 'session'}", "--session-name=session"),
                *("--metrics-agent-port=0", "--ray-commit=none", f"--node-id={secrets.token_hex(28)}"),
                f"--config_list={base64.b64encode(b'{}').decode()}",
            ],
            stdout=out,
            stderr=out,
            env={**others, **environment},
        )
    try:
        wait_listening(port, process, host=host)
        yield port
    finally:
        process.kill()
        process.wait(30)


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


def write_versions(port: int, **versions: str) -> None:
    """As `ray start --head` writes its own. Of a head without token and TLS."""
    request = MESSAGES.InternalKVPutRequest(
        key=b"CLUSTER_METADATA", value=json.dumps(versions).encode(), namespace=b"cluster", overwrite=True
    )
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        method = "/ray.rpc.InternalKVGcsService/InternalKVPut"
        reply = MESSAGES.InternalKVPutReply
        put: Any = channel.unary_unary(method, type(request).SerializeToString, reply.FromString)
        assert put(request, timeout=10).status.code == 0


def with_token(folder: Path, token: str | None = None) -> dict[str, str]:
    """The variables of a process with a token's file of its own."""
    folder.mkdir(exist_ok=True)
    path = write_private(folder / "token", (token or secrets.token_hex(32)).encode())
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def with_tls(
    folder: Path, authority: Authority, signed: tuple[bytes, bytes], ca: bytes = b""
) -> dict[str, str]:
    """The variables of a process with this certificate and key."""
    folder.mkdir(exist_ok=True)
    files = {"cert": signed[0], "key": signed[1], "ca": ca or authority.pem}
    paths = {name: str(write_private(folder / f"{name}.pem", data)) for name, data in files.items()}
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": paths["cert"],
        "RAY_TLS_SERVER_KEY": paths["key"],
        "RAY_TLS_CA_CERT": paths["ca"],
    }
