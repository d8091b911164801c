"""Workers on a cluster that is not ours: they come, they go, and nobody takes another's."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.client import Client
from tests.integration.processes import DEMO_CHECKPOINT, Server, assert_one_line_error, run_command

pytestmark = pytest.mark.timeout(240)
ENV = {"RAY_AUTH_MODE": "disabled"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_listening(port: int, process: subprocess.Popen[bytes], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, "ray start ended"
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"nothing listens on {port}")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as temp:
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *(f"--port={port}", f"--temp-dir={temp}", "--num-cpus=2"),
                *("--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ENV},
        )
        try:
            wait_listening(port, head)
            yield f"127.0.0.1:{port}"
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(60)


def serve(address: str, log: Path, *arguments: str) -> Server:
    return Server(str(DEMO_CHECKPOINT), "--ray-address", address, *arguments, log=log, env=ENV)


def generate(server: Server) -> tuple[int, ...]:
    with Client(server.address) as client:
        return client.generate("def f(", max_tokens=8, temperature=0, return_token_ids=True).token_ids


def test_workers_end_with_the_server_and_the_cluster_stays(address: str, tmp_path: Path) -> None:
    answers = []
    for number in range(2):
        with serve(address, tmp_path / f"log-{number}") as server:
            server.wait_ready()
            answers.append(generate(server))
            assert server.stop() == 0
    assert len(answers[0]) == 8
    assert answers[0] == answers[1], "the second found the names free"


def test_workers_left_by_a_killed_coordinator_are_replaced_only_when_asked(
    address: str, tmp_path: Path
) -> None:
    with serve(address, tmp_path / "first") as server:
        server.wait_ready()
        expected = generate(server)
        server.process.kill()
        server.process.wait(30)
    refused = run_command(
        *("serve", str(DEMO_CHECKPOINT), "--ray-address", address, "--grpc-address", "127.0.0.1:0"), env=ENV
    )
    assert_one_line_error(refused, "expert-worker-0", "expertmesh")
    with serve(address, tmp_path / "second", "--replace-workers") as server:
        server.wait_ready()
        assert generate(server) == expected
        assert server.stop() == 0
