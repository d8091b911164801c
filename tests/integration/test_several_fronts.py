"""`serve --fronts 2`: real fronts count, admit and obey as one server, also when one of them is killed."""

import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.process_tree import tree
from benchmarks.server_process import FRONT_MODULE
from expertmesh import ClientError, ControlClient
from tests.integration.processes import Server

pytestmark = pytest.mark.timeout(240)

# Of sequences that may run or wait.
LIMIT = 6
# With so many connections a front that counted alone would admit more: not all of them come to one.
NUM_STREAMS = 14
LONG = {"prompt": [1, 2, 3], "max_tokens": 1 << 20, "stream": True, "ignore_eos": True}
# Seconds.
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = ["--workers=0", "--fronts=2", f"--max-queue-requests={LIMIT}"]
    more = ["--max-output-tokens=1048576", "--context-overflow=slide"]
    log = tmp_path_factory.mktemp("fronts") / "log"
    with Server(str(tiny_checkpoint), *arguments, *more, log=log) as server:
        server.wait_ready()
        yield server


def url(server: Server, path: str) -> str:
    return f"http://{server.address_of('http')}{path}"


def completed(server: Server) -> None:
    """One request on a connection of its own: the kernel chooses its front."""
    body = json.dumps({"prompt": [1, 2, 3], "max_tokens": 2}).encode()
    request = urllib.request.Request(
        url(server, "/v1/completions"), body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        response.read()


def metric(server: Server, name: str) -> float:
    """The sum of its series, as one front tells it."""
    with urllib.request.urlopen(url(server, "/metrics"), timeout=PATIENCE) as response:
        text = response.read().decode()
    return sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (.*)$", text, re.MULTILINE)))


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def front_pids(server: Server) -> list[int]:
    return [process.pid for process in tree(server.process.pid) if process.runs(FRONT_MODULE)]


def num_times_ready(server: Server) -> int:
    """Of all fronts together."""
    return server.log.count(": ready\n")


class Streams:
    """Streams that run until they are ended, each on a connection of its own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stack = ExitStack()
        self.responses: list[httpx.Response] = []

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self, count: int) -> list[int]:
        """Their status codes, in order."""
        for _ in range(count):
            client = self._stack.enter_context(httpx.Client(timeout=PATIENCE))
            stream = client.stream("POST", url(self._server, "/v1/completions"), json=LONG)
            self.responses.append(self._stack.enter_context(stream))
        return [response.status_code for response in self.responses]


def test_each_front_tells_the_metrics_of_all(server: Server) -> None:
    count = "expertmesh_generation_tokens_total"
    before = metric(server, count)
    for _ in range(NUM_STREAMS):
        completed(server)
    # The client may have its answer before its front has counted.
    until(lambda: metric(server, count) == before + 2 * NUM_STREAMS)
    assert {metric(server, count) for _ in range(10)} == {before + 2 * NUM_STREAMS}
    steps = {metric(server, "expertmesh_step_seconds_count") for _ in range(10)}
    assert len(steps) == 1, "the engine's are told once"
    assert steps.pop() >= 2 * NUM_STREAMS


def test_one_limit_holds_for_all_and_one_operator_reaches_all(server: Server) -> None:
    with Streams(server) as streams, ControlClient(server.address_of("control")) as control:
        assert sorted(streams.begin(NUM_STREAMS)) == [200] * LIMIT + [429] * (NUM_STREAMS - LIMIT)
        running = {
            response.headers["x-request-id"] for response in streams.responses if response.status_code == 200
        }
        ended, unknown = control.abort([min(running), "unknown"])
        assert (ended, unknown) == ((min(running),), ("unknown",))
        [first] = [each for each in streams.responses if each.headers["x-request-id"] == min(running)]
        assert "[DONE]" in first.read().decode()
        assert set(control.abort(everything=True)[0]) == running - {min(running)}
        for response in streams.responses:
            assert response.status_code == 429 or response is first or "[DONE]" in response.read().decode()
        until(lambda: not control.load().running_requests)


def test_all_say_that_they_are_one_server(server: Server) -> None:
    said = set()
    for _ in range(8):
        with ControlClient(server.address_of("control")) as control:
            said.add(control.server_info().instance_id)
    assert len(said) == 1


def test_a_front_that_is_killed_has_counted_and_holds_nothing(server: Server) -> None:
    for _ in range(NUM_STREAMS):
        completed(server)
    told = metric(server, "expertmesh_generation_tokens_total")
    with Streams(server) as streams:
        assert streams.begin(NUM_STREAMS).count(200) == LIMIT
        victim, num_ready = front_pids(server)[0], num_times_ready(server)
        os.kill(victim, signal.SIGKILL)
        # Its streams end, and others may begin in their stead, through whichever front is there.
        until(lambda: len(set(front_pids(server)) - {victim}) == 2)
    until(lambda: _is_idle(server))
    with Streams(server) as streams:
        until(lambda: streams.begin(1).count(200) == LIMIT)
        assert streams.begin(NUM_STREAMS).count(200) == LIMIT
        # Whichever is asked: what the dead one has counted is in it.
        assert min(metric(server, "expertmesh_generation_tokens_total") for _ in range(10)) >= told
    # Only then may the other one be killed by another test.
    until(lambda: num_times_ready(server) > num_ready)


def test_nobody_is_refused_while_a_front_is_started_again(server: Server) -> None:
    (victim, _), num_ready = front_pids(server), num_times_ready(server)

    def another_serves() -> bool:
        completed(server)
        return num_times_ready(server) > num_ready

    os.kill(victim, signal.SIGKILL)
    # Its sockets are closed before its place in the table of processes is free.
    until(lambda: not Path(f"/proc/{victim}").exists())
    until(another_serves)


def test_an_end_does_not_wait_for_a_front_that_was_starting(server: Server) -> None:
    """It ends without ever having had a call."""
    victim = front_pids(server)[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(set(front_pids(server)) - {victim}) == 2)
    assert server.stop(PATIENCE / 2) == 0
    assert "is not waited for" not in server.log


def _is_idle(server: Server) -> bool:
    with ControlClient(server.address_of("control")) as control:
        try:
            return control.load().running_requests == 0
        except ClientError:
            # Of a front that has just been started.
            return False
