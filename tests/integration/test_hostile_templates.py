"""A chat template that hangs or takes all memory: real servers, with another client's stream beside it.

`pytest -s -m slow` prints a table of all of them: seconds until the answer, the renderer's most memory, the
longest silence of the other client's stream.
"""

import itertools
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from expertmesh import Client, Delta
from tests.coordinator.api.hostile_templates import AT_COMPILE, HOSTILE, switch
from tests.integration.processes import DEMO_CHECKPOINT, Server, children, wait_gone

pytestmark = pytest.mark.timeout(240)

SECRET = {"EXPERTMESH_API_KEY": "a-key-of-the-servers-environment"}
RENDERER = "chat_template_main"


def serve(template: str, folder: Path, *arguments: str) -> Server:
    path = folder / "odd.jinja"
    path.write_text(template)
    options = ("--workers", "0", "--chat-template", str(path), *arguments)
    return Server(str(DEMO_CHECKPOINT), *options, log=folder / "log")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(switch(), tmp_path_factory.mktemp("templates")) as server:
        server.wait_ready()
        yield server


def chat(server: Server, content: str, timeout: float = 60.0) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
    request = urllib.request.Request(
        f"http://{server.address_of('http')}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return int(answer.status), json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def renderers(server: Server) -> set[int]:
    found = set()
    for pid in children(server.process.pid):
        try:
            if RENDERER in Path(f"/proc/{pid}/cmdline").read_text():
                found.add(pid)
        except OSError:
            continue
    return found


def memory_mib(pid: int, name: str) -> float:
    """A line of a process's status; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


@dataclass
class Beside:
    """Another client, whose stream goes on, and a look at the renderers' memory, until the block ends."""

    server: Server
    arrivals: list[float] = field(default_factory=list)
    most_mib: float = 0.0

    def __enter__(self) -> Self:
        self._over, self._flows = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._stream, self._watch)]
        for thread in self._threads:
            thread.start()
        assert self._flows.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def gap(self, begin: float, end: float) -> float:
        """The longest silence between two times."""
        times = [begin, *(at for at in self.arrivals if begin < at < end), end]
        return max(after - before for before, after in itertools.pairwise(times))

    def _stream(self) -> None:
        with Client(self.server.address) as client:
            while not self._over.is_set():
                for event in client.stream(
                    "class A", max_tokens=400, ignore_eos=True, context_overflow="slide"
                ):
                    if isinstance(event, Delta):
                        self.arrivals.append(time.monotonic())
                        self._flows.set()
                    if self._over.is_set():
                        break

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            peaks = [memory_mib(pid, "VmHWM") for pid in renderers(self.server)]
            self.most_mib = max([self.most_mib, *peaks])


def test_a_hostile_conversation_ends_with_an_error_and_others_go_on(server: Server) -> None:
    (front,) = server.front_pids()
    before = memory_mib(front, "VmRSS")
    for name in ("text doubled with ~", "loops without output"):
        with Beside(server) as beside:
            status, body = chat(server, name)
            count = len(beside.arrivals)
            status_after, _ = chat(server, "hello")
        assert (status, body["error"]["code"]) == (400, "invalid_value")
        assert "chat template odd.jinja takes more than " in body["error"]["message"]
        assert status_after == 200
        assert count > 1
        assert beside.most_mib <= 256
    assert memory_mib(front, "VmRSS") - before < 64


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_table_of_all_hostile_templates(server: Server) -> None:
    rows = []
    with Beside(server) as beside:
        for name in HOSTILE:
            if name in AT_COMPILE:
                continue
            beside.most_mib = 0.0
            begin = time.monotonic()
            status, body = chat(server, name)
            end = time.monotonic()
            rows.append(
                (name, end - begin, beside.most_mib, beside.gap(begin, end), body["error"]["message"])
            )
            assert status == 400
    print(f"\n{'template':32} {'s':>5} {'MiB':>5} {'delay s':>7}")
    for name, seconds, mib, delay, words in rows:
        print(f"{name:32} {seconds:5.2f} {mib:5.0f} {delay:7.3f}  {words}")
    assert max(row[2] for row in rows) <= 256


def test_a_server_with_a_template_that_hangs_serves_all_but_chat(tmp_path: Path) -> None:
    with serve(HOSTILE["loops without output"], tmp_path) as server:
        server.wait_ready()
        status, body = chat(server, "hello")
        assert (status, body["error"]["code"]) == (400, "no_chat_template")
        assert "chat template odd.jinja " in body["error"]["message"]
        with Client(server.address) as client:
            assert client.generate("class A", max_tokens=2).usage.completion_tokens == 2
            assert not client.model_info().has_chat_template
        assert server.stop() == 0
        assert "WARNING" in server.log
        assert "chat template odd.jinja " in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_server_that_ends_while_it_renders(number: int, tmp_path: Path) -> None:
    with serve(switch(), tmp_path, "--drain-timeout", "5") as server:
        server.wait_ready()
        (first,) = renderers(server)
        asking = threading.Thread(target=_ask_until_it_ends, args=(server,))
        asking.start()
        # One that hung has been ended, so another hangs now.
        assert wait_gone({first}, 60) == set()
        below = children(server.process.pid)
        server.process.send_signal(number)
        assert server.process.wait(60) == (0 if number == signal.SIGTERM else -number)
        asking.join()
        assert wait_gone(below, 20) == set()


def _ask_until_it_ends(server: Server) -> None:
    """The last answer may be an error, or none."""
    try:
        while chat(server, "loops without output")[0] == 400:
            pass
    except OSError:
        return


def test_a_renderer_knows_nothing_of_the_servers_environment(tmp_path: Path) -> None:
    path = tmp_path / "plain.jinja"
    path.write_text("{{ messages[0].content }}")
    options = ("--workers", "0", "--chat-template", str(path))
    with Server(str(DEMO_CHECKPOINT), *options, log=tmp_path / "log", env=SECRET) as server:
        server.wait_ready()
        (renderer,) = renderers(server)
        told = Path(f"/proc/{renderer}/environ").read_bytes().strip(b"\0").split(b"\0")
        assert [each.partition(b"=")[0] for each in told] == [b"PYTHONPATH"]
        links = [os.readlink(link) for link in Path(f"/proc/{renderer}/fd").iterdir()]
        assert all(link.startswith("pipe:") or link == "/dev/null" for link in links)
