"""EngineServer: what fronts may say, what they are told unasked, and what is freed when they leave."""

import asyncio
import logging
import os
import socket
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from coordinator.engine.client.handlers import Handlers, Operated
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.core.prepared import Prepared, Preparer
from coordinator.engine.messages.codec import decode, encode
from coordinator.engine.messages.commands import (
    CheckIntegrity,
    ExpertList,
    ListExperts,
    RemoveExpert,
    ScaleWorkers,
)
from coordinator.engine.messages.errors import EngineError, EngineLostError, NoCommandError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import FinishReason, Output
from coordinator.engine.messages.process import Answer, Beat, Call, Hello
from coordinator.engine.messages.request import Abort, ConstraintSource, Request
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from coordinator.engine.process import server as server_module
from coordinator.engine.process.client import ProcessEngine
from coordinator.engine.process.frames import FrameReader
from coordinator.engine.process.server import EngineServer
from coordinator.engine.process.version import VERSION
from expert_workers.status import Scaled, WorkerState, WorkerStatus
from moe_model.versions.expert_versions import ExpertModule
from tests.coordinator.engine.client.clients import heard
from tests.coordinator.engine.constraints import WaitingBuilder
from tests.coordinator.engine.fakes import CountingRunner, GatedRunner, engine_over
from tests.coordinator.engine.process.linked import (
    PATIENCE,
    SpokenThread,
    cut,
    deaf,
    flood,
    frames,
    linked,
    raw_front,
    read,
    request_of,
    serving,
    until,
)
from tests.models import make_request

HELLO = Hello(VERSION)


def said_until_the_end(sock: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        while part := sock.recv(1 << 16):
            data += part
    return data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (frames(Hello("0.0.1/9")), f"it is of version 0.0.1/9, the engine of {VERSION}"),
        (frames(HELLO, HELLO), "it says Hello, which it may not say now"),
        (frames(request_of("a/1")), "it says Request, which it may not say now"),
        (frames(HELLO, EngineStats()), "it says EngineStats, which it may not say now"),
        (frames(HELLO, request_of("a")), "it sends a request without a number"),
        (frames(HELLO, request_of("a/1"), request_of("a/1")), "it sends a request twice"),
        (frames(HELLO, request_of("a/1", 0)), "or one without sequences"),
        (frames(HELLO, request_of(f"a/{1 << 64}")), "or with a wild number"),
        (b"\x05\0\0\0hello", "bytes that are no message"),
        (b"\xff\xff\xff\xff", "a message of 4294967295 bytes is longer than"),
        (b"GET / HTTP/1.1\r\n\r\n", "is longer than"),
    ],
    ids=range(11),
)
async def test_what_no_front_says_ends_its_connection_with_one_line(
    data: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    thread = SpokenThread()
    async with serving(thread) as path:
        with raw_front(path) as sock:
            sock.sendall(data)
            await asyncio.to_thread(said_until_the_end, sock)
        assert [record.levelname for record in caplog.records if why in record.message] != []
        assert len(caplog.records) == 1
        # What it had begun is freed, and others are served.
        await until(lambda: set(thread.aborted) == {each.request_id for each in thread.requests})


async def test_a_message_that_breaks_the_engine_s_side_ends_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What comes after it could not be told from its rest."""

    class Broken(SpokenThread):
        def submit(self, request: Request, prepared: Prepared | None = None) -> None:
            raise RuntimeError("not foreseen")

    async with serving(Broken()) as path:
        with raw_front(path) as sock:
            sock.sendall(frames(HELLO, request_of("a/1"), request_of("b/2")))
            await asyncio.to_thread(said_until_the_end, sock)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "a message could not be taken",
        "front 0: a message could not be taken; the log says why; 1 requests of it are ended",
    ]


async def test_half_a_message_holds_up_no_other_front() -> None:
    async with serving(EngineThread(engine_over(CountingRunner()))) as path:
        with raw_front(path) as sock:
            sock.sendall(frames(HELLO, request_of("a/1"))[:-3])
            front = await ProcessEngine.connect(path, PATIENCE)
            assert (await read(front, make_request("a", (1,), 2)))[-1].finish_reason is FinishReason.LENGTH
            await front.close()


async def test_processes_of_other_users_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "user_of", lambda _: os.geteuid() + 1)
    async with serving(SpokenThread()) as path:
        with raw_front(path) as sock:
            assert await asyncio.to_thread(said_until_the_end, sock) == b""
    assert [record.message for record in caplog.records] == [
        f"a process of user {os.geteuid() + 1} was refused"
    ]


async def test_a_front_that_leaves_frees_what_its_requests_hold() -> None:
    """Those that run, those that wait, and those whose constraints are being built; another front's go on."""
    runner, builder = GatedRunner(), WaitingBuilder()
    core = engine_over(runner, preparer=Preparer(32, constraints=builder))
    async with linked(EngineThread(core), num_fronts=2) as (leaving, staying):
        constraint = ConstraintSource("regex", ("a+",))
        lost = [make_request(f"r{n}", (1, 2), 9) for n in range(9)]
        lost.append(replace(make_request("built"), constraint=constraint))
        readers = [asyncio.create_task(read(leaving, request)) for request in lost]
        assert await asyncio.to_thread(builder.begun.acquire, True, PATIENCE)
        await until(lambda: runner.entered.acquire(blocking=False))
        kept = asyncio.create_task(read(staying, make_request("kept", (1, 2, 3), 4)))
        # As when its process dies: nothing is said.
        cut(leaving)
        for reader in readers:
            with pytest.raises(EngineLostError):
                await reader
        await heard(staying)
        num_steps = len(runner.steps)
        runner.permit(1000)
        assert (await asyncio.wait_for(kept, PATIENCE))[-1].finish_reason is FinishReason.LENGTH
        builder.go_on.set()
        await until(lambda: staying.stats().num_running + staying.stats().num_waiting == 0)
        assert staying.stats().num_free_blocks == staying.stats().num_blocks
        await asyncio.to_thread(staying.call, CheckIntegrity())
        # The one that was under way, and those of the request that was kept.
        assert len(runner.steps) - num_steps <= 1 + 4


async def test_a_front_that_leaves_with_requests_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    thread = SpokenThread()
    async with serving(thread) as path:
        for requests in ((), (request_of("a/1"), request_of("a/2"))):
            with raw_front(path) as sock:
                sock.sendall(frames(HELLO, *requests))
            num = len(requests)
            said = f"the other side has gone; {num} requests of it are ended"
            await until(lambda: said in caplog.text)  # noqa: B023 - it is awaited here
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert len(thread.aborted) == 2


async def test_an_abort_of_what_is_not_there_is_nothing() -> None:
    thread = SpokenThread()
    async with serving(thread) as path:
        with raw_front(path) as sock:
            sock.sendall(frames(HELLO, Abort("a/1"), Abort("no number")))
            await until(lambda: len(thread.aborted) == 2)


# What fronts are told.

WORKER = WorkerStatus(0, WorkerState.READY, pid=5)
MODULE = ExpertModule(0, 1, 1)


class Told:
    """What an engine's side tells of itself."""

    def __init__(self) -> None:
        self.model = ModelStatus(((0, 1),))
        self.workers = WorkersStatus((WORKER,), (), 1)
        self.missing: tuple[ExpertModule, ...] = ()
        handlers: Handlers = {ScaleWorkers: self._scale, ListExperts: self._break}
        self.operated = Operated(handlers, lambda: self.model, lambda: self.workers, lambda: self.missing)

    def _scale(self, command: ScaleWorkers) -> Scaled:
        self.workers = WorkersStatus((WORKER,) * command.num_workers)
        return Scaled(1, command.num_workers, 0, 0.0)

    def _break(self, _: ListExperts) -> object:
        raise RuntimeError("boom")


async def test_what_is_known_when_it_connects_is_there_at_once() -> None:
    told = Told()
    told.missing = (MODULE,)
    async with linked(SpokenThread(), operated=told.operated) as (front,):
        assert (front.model(), front.workers()) == (told.model, told.workers)
        assert front.missing_experts() == (MODULE,)
        assert front.stats() == EngineStats(kv_capacity_tokens=7)


async def test_changes_are_told_to_all_fronts() -> None:
    told, thread = Told(), SpokenThread()
    async with linked(thread, num_fronts=2, operated=told.operated) as fronts:
        told.model = ModelStatus(((0, 1, 2),), 1)
        told.missing = (MODULE,)
        thread.now = EngineStats(num_steps=3)
        told.workers = WorkersStatus(())
        for front in fronts:
            await until(partial(knows, front, told, thread.now))


def knows(front: ProcessEngine, told: Told, stats: EngineStats) -> bool:
    known = (front.model(), front.workers(), front.missing_experts(), front.stats())
    return known == (told.model, told.workers, told.missing, stats)


async def test_a_front_that_missed_news_hears_of_them_when_it_reads() -> None:
    told, thread = Told(), SpokenThread()
    async with linked(thread, operated=told.operated) as (front,):
        reader = asyncio.create_task(read(front, request_of("a")))
        await until(lambda: thread.requests)
        key = thread.requests[0].request_id
        with deaf(front):
            thread.say([flood(key)])
            told.missing = (MODULE,)
            told.workers = WorkersStatus(())
            # A second front hears of it, so the first was told as well.
            other = await ProcessEngine.connect(front._connection._path, PATIENCE)
            await until(lambda: other.missing_experts() and not other.workers().workers)
            await other.close()
            assert front.missing_experts() == ()
        await until(lambda: front.missing_experts() and not front.workers().workers)
        thread.say([Output(key, (1,), FinishReason.STOP)])
        await reader


async def test_a_caller_of_a_command_finds_what_has_changed() -> None:
    told = Told()
    async with linked(SpokenThread(), operated=told.operated) as (front,):
        for num in (3, 2):
            scaled = await asyncio.to_thread(front.call, ScaleWorkers(num, 1.0))
            assert scaled.num_workers == len(front.workers().workers) == num


async def test_an_engine_s_side_that_cannot_be_looked_at_answers_and_is_alive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Told()
    async with linked(SpokenThread(), operated=told.operated) as (front,):
        del told.missing
        assert (await front.ask(ScaleWorkers(2, 1.0), PATIENCE)).num_workers == 2
        assert "the engine's side cannot be looked at" in caplog.text
        silent = [front._connection.silent_seconds]

        def has_said_more() -> bool:
            silent.append(front._connection.silent_seconds)
            return silent[-1] < silent[-2]

        await until(has_said_more)


async def test_a_command_that_breaks_is_one_error_and_the_log_has_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with linked(SpokenThread(), operated=Told().operated) as (front,):
        with pytest.raises(EngineError, match="a command failed; the log says why"):
            await asyncio.to_thread(front.call, ListExperts())
        assert "boom" in caplog.text
        with pytest.raises(NoCommandError, match="RemoveExpert"):
            await asyncio.to_thread(front.call, RemoveExpert(0, 0))


async def test_a_command_that_takes_long_holds_up_nothing() -> None:
    go_on, thread = threading.Event(), SpokenThread()

    def wait(_: ScaleWorkers) -> Scaled:
        assert go_on.wait(PATIENCE)
        return Scaled(1, 1, 0, 0.0)

    operated = Operated({ScaleWorkers: wait, ListExperts: lambda _: ExpertList(())})
    async with linked(thread, operated=operated) as (front,):
        slow = [asyncio.ensure_future(front.ask(ScaleWorkers(1, 1.0), PATIENCE)) for _ in range(9)]
        assert await front.ask(ListExperts(), PATIENCE) == ExpertList(())
        reader = asyncio.create_task(read(front, request_of("a")))
        await until(lambda: thread.requests)
        thread.say([Output(thread.requests[0].request_id, (1,), FinishReason.STOP)])
        await reader
        assert not any(each.done() for each in slow)
        go_on.set()
        await asyncio.gather(*slow)


@pytest.mark.parametrize(
    ("command", "why"),
    [(encode(EngineStats()), "EngineStats is no command"), (b"junk", "bytes that are no message")],
    ids=["message", "junk"],
)
async def test_what_is_asked_and_is_no_command_is_an_error(command: bytes, why: str) -> None:
    async with serving(SpokenThread()) as path:
        with raw_front(path) as sock:
            sock.sendall(frames(HELLO, Call(7, command)))
            answers = [each async for each in messages(sock) if isinstance(each, Answer)]
    assert [each.number for each in answers] == [7]
    failure = decode(answers[0].result)
    assert isinstance(failure, Failure)
    assert why in failure.text


async def messages(sock: socket.socket) -> AsyncIterator[object]:
    """Of an engine, until it has answered."""
    reader, answered = FrameReader(), False
    while not answered:
        data = await asyncio.to_thread(sock.recv, 1 << 16)
        for message in reader.feed(memoryview(data)):
            yield message
            answered = answered or isinstance(message, Answer)


async def test_an_engine_with_nothing_to_say_beats() -> None:
    async with serving(SpokenThread()) as path:
        with raw_front(path) as sock:
            async for message in messages(sock):
                if isinstance(message, Beat):
                    break


async def test_a_closed_server_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="em-") as folder:
        path = Path(folder) / "engine"
        async with serving(SpokenThread(), path=path):
            assert path.is_socket()
        assert not path.exists()
    server = EngineServer(SpokenThread())
    assert await server.close(), "one that has never served can be closed"
