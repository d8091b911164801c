"""Variables that other programs need, and that must not break ours: proxies where there is nothing."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from expertmesh import Client, ClientError
from tests.integration.processes import DEMO_CHECKPOINT, Server, run_command

# Reserved, and never bound: whatever is sent there is refused.
NOWHERE = "http://127.0.0.1:9"
_NAMES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "ftp_proxy", "no_proxy", "no_grpc_proxy")
PROXIES = {
    written: NOWHERE if not name.startswith("no_") else ""
    for name in _NAMES
    for written in (name, name.upper())
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that has all of these variables itself."""
    log = tmp_path_factory.mktemp("proxies") / "log"
    with Server(str(DEMO_CHECKPOINT), "--workers", "0", log=log, env=PROXIES) as running:
        running.wait_ready()
        yield running


@pytest.mark.parametrize("name", ["grpc", "localhost"])
def test_the_client_reaches_this_machine(server: Server, name: str) -> None:
    address = server.address.replace("127.0.0.1", name) if name != "grpc" else server.address
    done = run_command("client", address, "--prompt", "def main():", "--max-tokens", "4", env=PROXIES)
    assert done.returncode == 0, done.stderr
    assert "4 tokens," in done.stderr


@pytest.mark.parametrize("command", [["top", "--count", "1"], ["experts", "list"]])
def test_control_commands_reach_this_machine(server: Server, command: list[str]) -> None:
    address = server.address_of("control")
    arguments = [command[0], address, *command[1:]] if command[0] == "top" else [*command, address]
    done = run_command(*arguments, env=PROXIES)
    assert done.returncode == 0, done.stderr


def test_scale_reaches_this_machine(server: Server) -> None:
    """This server has no workers to scale; that it says so is what shows that it was asked."""
    done = run_command("scale", server.address_of("control"), "--workers", "1", env=PROXIES)
    assert done.returncode == 1
    assert "UNIMPLEMENTED: this server's experts run in the coordinator" in done.stderr


def test_the_demo_runs() -> None:
    """With a Ray of its own, wherever RAY_ADDRESS leads."""
    ambient = {**PROXIES, "RAY_ADDRESS": "127.0.0.1:1", "RAY_NAMESPACE": "other", "PYTHONOPTIMIZE": "2"}
    arguments = ("--workers", "1", "--prompt", "def main():", "--max-tokens", "4")
    done = run_command("demo", str(DEMO_CHECKPOINT), *arguments, env=ambient)
    assert done.returncode == 0, done.stderr
    assert "4 tokens," in done.stdout


def test_other_machines_are_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gRPC has it everywhere; and an error says that it was so."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        asked: list[bytes] = []
        threading.Thread(target=_refuse, args=(proxy, asked), daemon=True).start()
        where = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        monkeypatch.setenv("http_proxy", where)
        with Client("server.example:50051", timeout=10.0) as client, pytest.raises(ClientError) as caught:
            client.generate("x")
    assert asked
    assert asked[0].startswith(b"CONNECT server.example:50051 ")
    assert f"cannot be reached through the proxy {where}" in str(caught.value)
    assert "no_proxy=server.example goes around it" in str(caught.value)


def _refuse(proxy: socket.socket, asked: list[bytes]) -> None:
    while True:
        try:
            connection, _ = proxy.accept()
        except OSError:
            return
        with connection:
            asked.append(connection.recv(1024))
            connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")


def test_the_variables_are_in_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "environment.md").read_text(encoding="utf-8")
    for name in (*_NAMES, "RAY_ADDRESS", "OMP_NUM_THREADS", "EXPERTMESH_API_KEY", "SSL_CERT_FILE"):
        assert name in page, name
