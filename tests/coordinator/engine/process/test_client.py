"""ProcessEngine: what its callers see while there is no engine, when one is lost, and when it is back."""

import asyncio
import logging
import resource
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from coordinator.engine.client.handlers import Operated
from coordinator.engine.messages.commands import ExpertList, ListExperts
from coordinator.engine.messages.errors import EngineBusyError, EngineClosedError, EngineLostError
from coordinator.engine.messages.output import FinishReason, Output
from coordinator.engine.messages.process import Beat, Hello, StepOutputs
from coordinator.engine.messages.request import Request
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from coordinator.engine.process import client
from coordinator.engine.process.client import ProcessEngine
from coordinator.engine.process.listening import listen_at
from coordinator.engine.process.version import VERSION
from moe_model.errors import HaltedError
from tests.coordinator.engine.process.linked import (
    PATIENCE,
    SpokenThread,
    cut,
    frames,
    linked,
    read,
    request_of,
    serving,
    until,
)

READY = frames(Hello(VERSION), StepOutputs(stats=EngineStats()))


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="em-") as folder:
        yield Path(folder) / "engine"


@asynccontextmanager
async def before_an_engine(path: Path) -> AsyncIterator[ProcessEngine]:
    front = ProcessEngine(path)
    yield front
    assert await front.close()


class RawEngine:
    """What listens where an engine should, and says what a test says."""

    def __init__(self, path: Path) -> None:
        self._listener = listen_at(path)
        self._listener.setblocking(True)
        self._listener.settimeout(PATIENCE)
        self._socks: list[socket.socket] = []

    async def says(self, data: bytes) -> socket.socket:
        """To the next front that connects."""
        sock, _ = await asyncio.to_thread(self._listener.accept)
        self._socks.append(sock)
        sock.sendall(data)
        return sock

    def close(self) -> None:
        for sock in [self._listener, *self._socks]:
            sock.close()


@pytest.fixture
def raw_engine(path: Path) -> Iterator[RawEngine]:
    engine = RawEngine(path)
    yield engine
    engine.close()


async def test_before_there_is_an_engine_all_is_lost(path: Path) -> None:
    async with before_an_engine(path) as front:
        stats = front.stats()
        assert (stats.stopped, stats.lost) == (True, True)
        with pytest.raises(EngineLostError, match="there is no engine"):
            await read(front, request_of("a"))
        with pytest.raises(EngineLostError, match="there is no engine"):
            await asyncio.to_thread(front.call, ListExperts())
        assert front.request_ids == []
        async with serving(SpokenThread(), path=path):
            await until(lambda: not front.stats().lost)


async def test_a_front_with_too_many_open_files_looks_for_an_engine_until_it_can(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(SpokenThread(), path=path):
        # No file can be opened any more, whatever is open.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            front = ProcessEngine(path)
            await until(lambda: "Too many open files" in front._connection.why)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: not front.stats().lost)
        assert await front.close()


async def test_who_waits_for_an_engine_hears_why_there_is_none(path: Path) -> None:
    with pytest.raises(EngineLostError, match=r"no engine in 0\.05 s: .*engine: No such file"):
        await ProcessEngine.connect(path, 0.05)


async def test_an_engine_that_is_lost_ends_all_and_the_next_serves_as_if_new(path: Path) -> None:
    go_on = threading.Event()

    def wait(_: ListExperts) -> ExpertList:
        go_on.wait(PATIENCE)
        return ExpertList(())

    thread = SpokenThread()
    operated = Operated({ListExperts: wait}, lambda: ModelStatus(((1,),)), WorkersStatus)
    async with before_an_engine(path) as front:
        async with serving(thread, operated, path):
            await until(lambda: not front.stats().lost)
            thread.now = EngineStats(num_running=3, kv_usage=0.5, kv_capacity_tokens=7, num_blocks=9)
            async with aclosing(front.stream(request_of("a"))) as stream:
                first = asyncio.ensure_future(anext(stream))
                await until(lambda: thread.requests)
                thread.say([Output(thread.requests[0].request_id, (1,))])
                assert (await first).token_ids == (1,)
                call = asyncio.ensure_future(front.ask(ListExperts(), PATIENCE))
                await until(lambda: front._calls._open)
                cut(front)
                with pytest.raises(EngineLostError, match="the engine is lost"):
                    await anext(stream)
            with pytest.raises(EngineLostError, match="the engine is lost"):
                await call
            go_on.set()
        await until(lambda: front.stats().lost)
        # What is known stays known: an engine that is started again is most likely the same.
        assert front.stats() == EngineStats(kv_capacity_tokens=7, num_blocks=9, stopped=True, lost=True)
        assert front.model() == ModelStatus(((1,),))
        with pytest.raises(EngineLostError):
            await front.abort(["a"])
        again = SpokenThread()
        async with serving(again, path=path):
            await until(lambda: not front.stats().lost)
            assert front.model() == ModelStatus(())
            reader = asyncio.create_task(read(front, request_of("a")))
            await until(lambda: again.requests)
            again.say([Output(again.requests[0].request_id, (2,), FinishReason.STOP)])
            assert [output.token_ids for output in await reader] == [(2,)]


async def test_what_was_there_by_then_is_read_before_the_loss() -> None:
    thread = SpokenThread()
    async with linked(thread) as (front,):
        stream = front.stream(request_of("a"))
        first = asyncio.ensure_future(anext(stream))
        await until(lambda: thread.requests)
        key = thread.requests[0].request_id
        thread.say([Output(key, (1,))])
        await first
        thread.say([Output(key, (2,))])
        cut(front)
        assert (await anext(stream)).token_ids == (2,)
        with pytest.raises(EngineLostError):
            await anext(stream)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (frames(Hello("9.9.9/9")), f"the engine is of version 9.9.9/9, this front of {VERSION}"),
        (frames(Beat()), "it says Beat before its version"),
        (frames(Hello(VERSION), request_of("a/1")), "it says Request, which no engine says"),
        (b"\x05\0\0\0hello", "bytes that are no message"),
        (b"", "the other side has gone"),
    ],
    ids=range(5),
)
async def test_what_is_no_engine_of_ours_is_told_of_once_and_left(
    path: Path, raw_engine: RawEngine, data: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with before_an_engine(path) as front:
        for _ in range(3):
            sock = await raw_engine.says(data)
            sock.shutdown(socket.SHUT_WR)
        await raw_engine.says(READY)
        await until(lambda: not front.stats().lost)
    assert [why in record.message for record in caplog.records] == [True]


async def test_an_engine_of_which_nothing_is_heard(
    path: Path, raw_engine: RawEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readiness sees its silence, calls give up, streams stay for as long as their callers like."""
    monkeypatch.setattr(client, "QUIET", 0.05)
    monkeypatch.setattr(client, "CALL_SILENCE", 0.2)
    async with before_an_engine(path) as front:
        sock = await raw_engine.says(READY)
        await until(lambda: front.stats().silent_seconds > 0.05)
        assert not front.stats().stopped
        with pytest.raises(EngineLostError, match=r"nothing heard of the engine for 0\.2 s"):
            await asyncio.to_thread(front.call, ListExperts())
        with pytest.raises(EngineLostError, match=r"not answered within 0\.05 s"):
            await front.ask(ListExperts(), 0.05)
        assert not front._calls._open
        sock.sendall(frames(Beat()))
        await until(lambda: front.stats() == EngineStats())


async def test_an_engine_that_reads_nothing_is_given_no_more(
    path: Path, raw_engine: RawEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The queue is bounded, and the loop goes on. What was queued is sent when it reads again."""
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(client, "MAX_QUEUED_BYTES", 1 << 20)
    async with before_an_engine(path) as front:
        sock = await raw_engine.says(READY)
        await until(lambda: not front.stats().lost)
        long = Request("", tuple(range(100_000)), request_of("").sampling, request_of("").stop)
        tasks: list[asyncio.Task[list[Output]]] = []
        while not any(task.done() for task in tasks):
            request = Request(f"r{len(tasks)}", long.prompt_ids, long.sampling, long.stop)
            tasks.append(asyncio.create_task(read(front, request)))
            await until(lambda: len(front.request_ids) == len(tasks) or tasks[-1].done())
            assert len(tasks) < 20
        with pytest.raises(EngineBusyError, match="has not taken yet"):
            await tasks.pop()
        assert len(front.request_ids) == len(tasks)
        channel = front._connection.channel
        assert channel is not None
        while channel.num_unsent:
            await asyncio.to_thread(sock.recv, 1 << 20)
        late = asyncio.create_task(read(front, request_of("late")))
        await until(lambda: "late" in front.request_ids)
        sock.shutdown(socket.SHUT_RDWR)
        for task in [*tasks, late]:
            with pytest.raises(EngineLostError):
                await task


async def test_closing_leaves_the_engine_to_the_others() -> None:
    thread = SpokenThread()
    async with linked(thread, num_fronts=2) as (leaving, staying):
        reader = asyncio.create_task(read(leaving, request_of("a")))
        await until(lambda: thread.requests)
        assert await leaving.close()
        with pytest.raises(EngineClosedError):
            await reader
        with pytest.raises(EngineClosedError):
            await read(leaving, request_of("b"))
        with pytest.raises(HaltedError):
            await asyncio.to_thread(leaving.call, ListExperts())
        await until(lambda: thread.aborted)
        assert not staying.stats().lost
        assert await leaving.close(), "closing twice is closing once"
