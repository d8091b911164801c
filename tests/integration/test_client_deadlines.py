"""A real server that ends, or stands still, under the calls of real clients: each ends, and soon."""

import asyncio
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from expertmesh import AsyncClient, Client, ClientError, Delta, GenerateOptions
from tests.integration.processes import DEMO_CHECKPOINT, Server, stop

TIMEOUT = 5.0
# Long enough for a busy machine; a call that takes so long has outlived its timeout.
PATIENCE = 60.0

Act = Callable[[str, threading.Event], None]
LONG: GenerateOptions = {"max_tokens": 20_000, "ignore_eos": True, "context_overflow": "slide"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    arguments = ("--workers", "0", "--max-output-tokens", "20000", "--drain-timeout", "1")
    with Server(str(DEMO_CHECKPOINT), *arguments, log=tmp_path / "log") as running:
        running.wait_ready()
        yield running


def _stream(address: str, begun: threading.Event) -> None:
    with Client(address, timeout=TIMEOUT) as client:
        for event in client.stream("def main():", **LONG):
            if isinstance(event, Delta):
                begun.set()


def _unary(address: str, begun: threading.Event) -> None:
    with Client(address, timeout=TIMEOUT) as client:
        client.generate("def main():", **LONG)


def _async(address: str, begun: threading.Event) -> None:
    async def read() -> None:
        async with AsyncClient(address, timeout=TIMEOUT) as client:
            async for event in client.stream("def main():", **LONG):
                if isinstance(event, Delta):
                    begun.set()

    asyncio.run(read())


class Calls:
    """Threads that send one call after another until one fails for good."""

    def __init__(self, address: str) -> None:
        self.ended: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.begun = [threading.Event(), threading.Event()]
        kinds: list[tuple[Act, threading.Event]] = [
            (_stream, self.begun[0]),
            (_async, self.begun[1]),
            (_unary, threading.Event()),
        ]
        self.count = 4 * len(kinds)
        for kind, begun in kinds * 4:
            threading.Thread(target=self._run, args=(kind, address, begun), daemon=True).start()

    def _run(self, kind: Act, address: str, begun: threading.Event) -> None:
        try:
            kind(address, begun)
        except ClientError as error:
            self.ended.put(error.code)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.ended.put(error)

    def assert_ended(self, *codes: str) -> None:
        for number in range(self.count):
            try:
                assert self.ended.get(timeout=PATIENCE) in codes
            except queue.Empty:
                pytest.fail(f"{self.count - number} calls outlived their timeout of {TIMEOUT} s")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_calls_end_with_their_server(server: Server, how: signal.Signals) -> None:
    """Those that run, and those that come while it drains and when it is gone."""
    calls = Calls(server.address)
    assert all(begun.wait(PATIENCE) for begun in calls.begun)
    server.process.send_signal(how)
    waves = [calls]
    while server.process.poll() is None:
        waves.append(Calls(server.address))
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(0.3)
    for wave in waves:
        wave.assert_ended("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_calls_end_while_their_server_stands_still(server: Server) -> None:
    calls = Calls(server.address)
    assert all(begun.wait(PATIENCE) for begun in calls.begun)
    (front,) = server.front_pids()
    stop(front)
    try:
        later = Calls(server.address)
        calls.assert_ended("DEADLINE_EXCEEDED", "UNAVAILABLE")
        later.assert_ended("DEADLINE_EXCEEDED", "UNAVAILABLE")
    finally:
        os.kill(front, signal.SIGCONT)
