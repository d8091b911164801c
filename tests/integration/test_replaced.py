"""A coordinator is replaced behind a balancer that deals out connections: no call of a client fails."""

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from expertmesh import Client
from scaling.hosts.ray_hosts import wait_until
from tests.integration.processes import DEMO_CHECKPOINT, Server

pytestmark = pytest.mark.long

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
NUM_CLIENTS = 3


def is_ready(server: Server) -> bool:
    try:
        _DIRECT.open(f"http://{server.address_of('http')}/readyz", timeout=5).close()
    except OSError:
        return False
    return True


class Balancer:
    """A connection goes to the first server that is ready then, and stays there. A context manager."""

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.chosen: list[Server] = []

    def __enter__(self) -> "Balancer":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                server = next((each for each in self._servers if is_ready(each)), None)
                if server is None:
                    near.close()
                    continue
                self.chosen.append(server)
                host, _, port = server.address.rpartition(":")
                far = socket.create_connection((host, int(port)))
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=(source, target), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    # Both ways, as one side has ended.
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        # The last option of a name counts; a balancer needs time to hear of the end.
        options = (str(DEMO_CHECKPOINT), "--workers", "0", "--threads", "1", "--withdrawal-grace", "1")
        made = [stack.enter_context(Server(*options, log=tmp_path / name)) for name in ("old", "new")]
        for server in made:
            server.wait_ready()
        yield made


def test_no_call_fails_while_one_coordinator_takes_over_from_another(servers: list[Server]) -> None:
    old, new = servers
    is_over = threading.Event()
    done: list[int] = []
    failures: list[Exception] = []

    def call(address: str) -> None:
        try:
            with Client(address) as client:
                while not is_over.is_set():
                    client.generate("def main():", max_tokens=4)
                    done.append(1)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    with Balancer(servers) as balancer:
        clients = [threading.Thread(target=call, args=(balancer.address,)) for _ in range(NUM_CLIENTS)]
        for thread in clients:
            thread.start()
        wait_until(lambda: len(done) >= 10 or bool(failures), 60, "no calls")
        assert balancer.chosen == [old] * len(balancer.chosen)
        assert old.stop() == 0
        before = len(done)
        wait_until(lambda: len(done) >= before + 10 or bool(failures), 60, "no calls at the new one")
        is_over.set()
        for thread in clients:
            thread.join(60)
        assert failures == []
        assert balancer.chosen[-1] is new
