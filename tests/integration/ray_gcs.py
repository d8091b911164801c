"""A Ray cluster's head without the cluster: the GCS alone, which starts in a tenth of a second."""

import base64
import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from ray._private import services
from ray.core.generated import gcs_service_pb2

from tests.coordinator.api.certificates import Authority, write_private
from tests.integration.ray_cluster import free_port, wait_listening

MESSAGES: Any = gcs_service_pb2


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
