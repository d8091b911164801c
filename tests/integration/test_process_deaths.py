"""What callers, operators and the machine see of the death of a server's process; and nothing is left."""

import asyncio
import json
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from expertmesh import AsyncClient, Client, ClientError, ControlClient, Delta
from tests.integration.processes import (
    DEMO_CHECKPOINT,
    Server,
    assert_one_line_error,
    children,
    run_command,
    unmapped,
    wait_gone,
)
from tests.integration.shared_cluster import Shared
from tests.integration.test_ray_address import worker_pids
from tests.integration.test_serve import temp, temp_env
from tests.scenarios.under_load import Load, until_true

__all__ = ["temp"]

pytestmark = pytest.mark.timeout(300)

NO_WORKERS = ("--workers=0",)
NUM_STREAMS = 16
# In which all streams must have ended, and a new engine must serve, on a machine with nothing else to do; a
# test is run on others too.
SLOW_MACHINE = 10.0


def serving(
    log: Path, *arguments: str, env: dict[str, str] | None = None, prefix: Sequence[str] = ()
) -> Server:
    return Server(str(DEMO_CHECKPOINT), *arguments, log=log, env=env, prefix=prefix)


async def until_it_serves(server: Server) -> float:
    """Seconds until a request gets through."""

    async def serves() -> bool:
        try:
            async with AsyncClient(server.address, timeout=5.0) as client:
                await client.generate([5], max_tokens=1)
        except ClientError as error:
            if error.code != "UNAVAILABLE":
                raise
            return False
        return True

    return await until_true(serves)


async def test_a_killed_engine_ends_its_requests_at_once_and_is_started_again(tmp_path: Path) -> None:
    with serving(tmp_path / "log", *NO_WORKERS) as server:
        server.wait_ready()
        load = Load(server.address, num_streams=NUM_STREAMS)
        await load.learn()
        engine, fronts = server.engine_pid(), server.front_pids()
        async with load.running(num_tokens=4) as tasks:
            started = time.perf_counter()
            os.kill(engine, signal.SIGKILL)
            histories = [await task for task in tasks]
            told = time.perf_counter() - started
        load.check(histories, allowed=["UNAVAILABLE"])
        errors = [history.error for history in histories]
        assert {error.reason for error in errors if error is not None} == {"ENGINE_LOST"}
        assert None not in errors
        assert told < SLOW_MACHINE
        await until_it_serves(server)
        assert f"the engine (pid {engine}) has died: SIGKILL; it is started again" in server.log
        assert "the engine serves again after" in server.log
        assert server.front_pids() == fronts
        assert server.engine_pid() != engine
        load.check(await load.run())
        assert server.stop() == 0


# Python runs it first in each process of the server: the next step after the file is there fails.
BREAK_A_STEP = """
import os, sys
if "coordinator.server.engine_process" in sys.orig_argv:
    from coordinator.engine.core.engine import Engine
    step = Engine.step
    def broken(engine):
        if os.path.exists(FILE):
            os.unlink(FILE)
            raise RuntimeError("bookkeeping")
        return step(engine)
    Engine.step = broken
"""


@pytest.mark.long
async def test_an_engine_whose_bookkeeping_fails_is_started_again(tmp_path: Path) -> None:
    broken, hook = tmp_path / "broken", tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(f"FILE = {str(broken)!r}{BREAK_A_STEP}")
    with serving(tmp_path / "log", *NO_WORKERS, env={"PYTHONPATH": str(hook)}) as server:
        server.wait_ready()
        engine = server.engine_pid()
        broken.touch()
        async with AsyncClient(server.address) as client:
            with pytest.raises(ClientError):
                await client.generate([5], max_tokens=1)
        async with asyncio.timeout(60):
            while "the engine serves again after" not in server.log:
                await asyncio.sleep(0.01)
        await until_it_serves(server)
        assert f"the engine (pid {engine}) has died: exit code 1, RuntimeError: the engine has" in server.log
        assert server.stop() == 0


@pytest.mark.long
async def test_a_new_engine_takes_over_the_workers_of_a_ray_of_our_own(tmp_path: Path) -> None:
    with serving(tmp_path / "log", "--workers=2") as server:
        server.wait_ready()
        load = Load(server.address)
        await load.learn()
        workers = worker_pids(server)
        assert len(workers) == 2
        async with load.running(num_tokens=4) as tasks:
            os.kill(server.engine_pid(), signal.SIGKILL)
            histories = [await task for task in tasks]
        load.check(histories, allowed=["UNAVAILABLE"])
        await until_it_serves(server)
        assert worker_pids(server) == workers
        assert "has loaded" not in server.log.partition("has died")[2], "their weights are still there"
        load.check(await load.run())
        assert server.stop() == 0
    assert wait_gone(workers) == set()


async def test_a_killed_front_costs_the_others_nothing(tmp_path: Path) -> None:
    """Each stream has a connection of its own, which the kernel has given to one of the two."""
    with serving(tmp_path / "log", *NO_WORKERS, "--fronts=2") as server:
        server.wait_ready()
        address, engine = server.address_of("http"), server.engine_pid()
        victim, other = server.front_pids(2)
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(opened(address)) for _ in range(24)]
            begun = [[await anext(stream) for _ in range(2)] for stream in streams]
            os.kill(victim, signal.SIGKILL)
            ends = [await rest(stream, text) for stream, text in zip(streams, begun, strict=True)]
        (whole,) = {*ends} - {LOST}
        assert len(whole) > 100, "the other front's streams are complete, and the same"
        assert 0 < ends.count(LOST) < len(ends), "each front had some"
        assert other in server.front_pids(2), "another has taken the place"
        assert "has died: SIGKILL; it is started again" in server.log
        assert server.engine_pid() == engine
        with ControlClient(server.address_of("control")) as control:
            await until_true(lambda: asyncio.to_thread(lambda: is_idle(control)))
        assert server.stop() == 0


LOST = "lost"


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[AsyncIterator[str]]:
    """The texts of a stream of 300 tokens over a connection of its own."""
    body = {"prompt": "def f(", "max_tokens": 300, "temperature": 0, "stream": True, "ignore_eos": True}
    async with (
        httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        assert response.status_code == 200
        yield texts(response)


async def texts(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        said = line.removeprefix("data: ")
        if said.startswith("{"):
            yield str(json.loads(said)["choices"][0]["text"])
        elif said:
            assert said == "[DONE]"
            return
    raise httpx.RemoteProtocolError("it ends without saying so")


async def rest(stream: AsyncIterator[str], begun: list[str]) -> str:
    try:
        return "".join(begun) + "".join([text async for text in stream])
    except httpx.TransportError:
        return LOST


def is_idle(control: ControlClient) -> bool:
    """The engine has freed what the requests of the front held."""
    load = control.load()
    return not load.running_requests + load.waiting_requests


def everything_of(server: Server) -> set[int]:
    return {server.process.pid, *children(server.process.pid)}


@pytest.mark.long
def test_nothing_outlives_a_killed_launcher(tmp_path: Path, temp: Path) -> None:
    """Its own Ray and its workers neither, nor a file, nor what was mapped."""
    shared_memory = {*Path("/dev/shm").iterdir()}
    with serving(tmp_path / "log", "--workers=2", "--fronts=2", env=temp_env(temp)) as server:
        server.wait_ready()
        everything = everything_of(server)
        assert len(everything) > 8
        server.process.kill()
        assert wait_gone(everything, timeout=20.0) == set()
    assert os.listdir(temp) == []
    assert unmapped({*Path("/dev/shm").iterdir()} - shared_memory) == set()
    assert "Traceback" not in server.log


@pytest.mark.long
def test_nothing_outlives_a_launcher_that_is_killed_while_it_starts(tmp_path: Path, temp: Path) -> None:
    for moment in (0.0, 0.3, 1.0):
        with serving(tmp_path / "log", "--workers=1", env=temp_env(temp)) as server:
            while len(children(server.process.pid)) < 3:
                assert server.process.poll() is None
                time.sleep(0.005)
            time.sleep(moment)
            everything = everything_of(server)
            server.process.kill()
            assert wait_gone(everything, timeout=60.0) == set()
        assert os.listdir(temp) == []


@pytest.mark.long
@pytest.mark.parametrize("keep", [False, True])
def test_workers_of_another_ray_end_with_the_launcher_unless_they_are_kept(
    shared_cluster: Shared, tmp_path: Path, keep: bool
) -> None:
    cluster = shared_cluster.cluster
    options = ["--workers=2", f"--ray-address={cluster.address}"]
    with serving(tmp_path / "log", *options, *(["--keep-workers"] * keep), env=cluster.env) as server:
        server.wait_ready()
        workers, rest = worker_pids(server), everything_of(server)
        server.process.kill()
        assert wait_gone(rest) == set()
        left = wait_gone(workers, timeout=2.0 if keep else 20.0)
        assert left == (workers if keep else set())
    if keep:
        with serving(tmp_path / "next", *options, env=cluster.env) as server:
            server.wait_ready()
            assert worker_pids(server) == workers
            assert server.stop() == 0


@pytest.mark.long
def test_an_engine_that_cannot_come_back_ends_the_server_and_says_why(tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(DEMO_CHECKPOINT, tmp_path / "checkpoint"))
    with Server(str(checkpoint), *NO_WORKERS, log=tmp_path / "log") as server:
        server.wait_ready()
        checkpoint.rename(tmp_path / "elsewhere")
        os.kill(server.engine_pid(), signal.SIGKILL)
        assert server.process.wait(200) == 1
        (line,) = re.findall(r"ERROR \S+ stopping: (.*)", server.log)
        assert str(checkpoint) in line
        assert line.endswith("; 5 times in 60 s are too often")


@pytest.mark.long
def test_an_engine_of_a_changed_checkpoint_does_not_serve(tmp_path: Path) -> None:
    """Fronts would take it for the one that they know."""
    checkpoint = Path(shutil.copytree(DEMO_CHECKPOINT, tmp_path / "checkpoint"))
    with Server(str(checkpoint), *NO_WORKERS, log=tmp_path / "log") as server:
        server.wait_ready()
        config = checkpoint / "tokenizer.json"
        config.unlink()
        os.kill(server.engine_pid(), signal.SIGKILL)
        assert server.process.wait(200) == 1


@pytest.mark.long
def test_a_signal_while_an_engine_is_started_again_ends_the_server(tmp_path: Path, temp: Path) -> None:
    with serving(tmp_path / "log", *NO_WORKERS, env=temp_env(temp)) as server:
        server.wait_ready()
        engine = server.engine_pid()
        os.kill(engine, signal.SIGKILL)
        while "is started again" not in server.log:
            time.sleep(0.005)
        everything = everything_of(server)
        assert server.stop(20) == 0
        assert wait_gone(everything) == set()
    assert os.listdir(temp) == []
    assert "Traceback" not in server.log


@pytest.mark.long
def test_a_signal_while_a_front_is_started_again_ends_the_server(tmp_path: Path) -> None:
    """It is told to drain while it loads its libraries."""
    with serving(tmp_path / "log", *NO_WORKERS, "--fronts=2") as server:
        server.wait_ready()
        os.kill(server.front_pids(2)[0], signal.SIGKILL)
        while "is started again" not in server.log:
            time.sleep(0.005)
        server.front_pids(2)
        assert server.stop(20) == 0
    assert "is not waited for" not in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    "workers", [pytest.param(0), pytest.param(2, marks=pytest.mark.long)], ids=["alone", "workers"]
)
def test_signals_to_the_whole_group_are_the_launcher_s(tmp_path: Path, workers: int) -> None:
    """As Ctrl-C on a terminal, `timeout`, or systemd at a stop: what runs may finish, with its workers."""
    with serving(tmp_path / "log", f"--workers={workers}", prefix=["setsid"]) as server:
        server.wait_ready()
        with Client(server.address) as client:
            stream = client.stream([5, 6, 7], max_tokens=400, ignore_eos=True)
            first = [next(stream), next(stream)]
            os.killpg(server.process.pid, signal.SIGTERM)
            events = [*first, *stream]
        assert sum(event.num_tokens for event in events if isinstance(event, Delta)) == 400
        assert server.process.wait(60) == 0
    assert " ERROR " not in server.log
    assert "lost" not in server.log


def test_processes_leave_signals_to_the_launcher(tmp_path: Path) -> None:
    """Those that are sent to each of them."""
    with serving(tmp_path / "log", *NO_WORKERS) as server:
        server.wait_ready()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for pid in (server.engine_pid(), *server.front_pids()):
                os.kill(pid, number)
        with Client(server.address) as client:
            assert client.generate([5, 6, 7], max_tokens=4).usage.completion_tokens == 4
        assert server.stop() == 0
    assert "has died" not in server.log


@pytest.mark.long
def test_a_second_server_is_refused_beside_several_fronts(tmp_path: Path) -> None:
    with serving(tmp_path / "log", *NO_WORKERS, "--fronts=2") as server:
        server.wait_ready()
        for more in ([], ["--fronts=2"], ["--no-engine-process"]):
            done = run_command("serve", str(DEMO_CHECKPOINT), "--grpc-address", server.address, *more)
            assert_one_line_error(done, f"grpc address {server.address}: already in use")
        assert server.stop() == 0
