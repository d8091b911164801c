"""Every call of every client ends, whatever the server does; and what is sent again."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from expertmesh import AsyncClient, Client, ClientError, ControlClient, Started
from expertmesh.retries import MAX_ATTEMPTS, Attempts, pushback
from expertmesh.v1 import generation_pb2 as pb
from tests.client.odd_servers import BEHAVIOURS, odd_server
from tests.coordinator.api.background import serving
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import PATIENCE, FakeEngine, running, tokens

pytestmark = BOTH_ENGINES

TIMEOUT = 0.5


def _stream(address: str, timeout: float) -> None:
    with Client(address, timeout=timeout) as client:
        list(client.stream("x"))


def _unary(address: str, timeout: float) -> None:
    with Client(address, timeout=timeout) as client:
        client.generate("x")


def _wait_ready(address: str, timeout: float) -> None:
    with Client(address) as client:
        client.wait_ready(timeout)


def _control(address: str, timeout: float) -> None:
    with ControlClient(address, timeout=timeout) as client:
        client.load()


def _async(act: Callable[[AsyncClient, float], Any]) -> Callable[[str, float], None]:
    async def call(address: str, timeout: float) -> None:
        async with AsyncClient(address) as client:
            await act(client, timeout)

    return lambda address, timeout: asyncio.run(call(address, timeout))


async def _read(client: AsyncClient, timeout: float) -> None:
    async for _ in client.stream("x", timeout=timeout):
        pass


CALLS: dict[str, Callable[[str, float], None]] = {
    "stream": _stream,
    "unary": _unary,
    "wait_ready": _wait_ready,
    "control": _control,
    "async stream": _async(_read),
    "async unary": _async(lambda client, timeout: client.generate("x", timeout=timeout)),
    "async wait_ready": _async(lambda client, timeout: client.wait_ready(timeout)),
}


def begin(act: Callable[..., object], *arguments: object) -> "queue.SimpleQueue[BaseException | None]":
    """What it ends with comes into the queue; None for success. On a thread that nothing waits for."""
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            act(*arguments)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            ended.put(error)
        else:
            ended.put(None)

    threading.Thread(target=run, daemon=True).start()
    return ended


def assert_all_fail(endings: "dict[str, queue.SimpleQueue[BaseException | None]]") -> None:
    """Each has ended with an error of ours. A hang is a queue that stays empty."""
    for name, ended in endings.items():
        try:
            error = ended.get(timeout=PATIENCE)
        except queue.Empty:
            pytest.fail(f"{name} outlived its timeout")
        assert isinstance(error, ClientError), (name, error)


@pytest.mark.parametrize("behaviour", sorted(BEHAVIOURS))
def test_every_call_ends(behaviour: str) -> None:
    with odd_server(behaviour) as address:
        assert_all_fail({name: begin(call, address, TIMEOUT) for name, call in CALLS.items()})


def test_calls_end_when_a_server_refuses_them_and_then_is_gone() -> None:
    """What an ordinary restart is to a client; with grpc's own retries its streams stood still for ever."""
    refused = threading.Event()
    with watching(refused), serving(ready=False) as server:
        calls = {f"{name} {n}": begin(CALLS[name], server.address, 3.0) for name in CALLS for n in range(3)}
        assert refused.wait(PATIENCE)
    assert_all_fail(calls)


def test_a_stream_that_stops_in_the_middle_ends() -> None:
    with serving(FakeEngine(tokens(40), asyncio.Event())) as server:
        assert_all_fail(
            {name: begin(CALLS[name], server.address, TIMEOUT) for name in ("stream", "async stream")}
        )


@contextmanager
def watching(refused: threading.Event) -> Iterator[None]:
    """`refused` is set when the first call was turned away."""
    original = Attempts.pause

    def pause(self: Attempts, error: ClientError, *, heard: bool) -> float | None:
        refused.set()
        return original(self, error, heard=heard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempts, "pause", pause)
        yield


def test_closing_a_client_ends_the_stream_of_another_thread() -> None:
    with serving(FakeEngine(tokens(40), asyncio.Event())) as server:
        client = Client(server.address)
        stream = client.stream("x")
        assert isinstance(next(stream), Started)
        ended = begin(list, stream)
        # The first event is told before the engine has the request: one that never came is not ended there.
        server.wait_for(server.engine.started)
        client.close()
        error = ended.get(timeout=PATIENCE)
        assert isinstance(error, ClientError)
        assert error.code == "CANCELLED"
        server.wait_for(server.engine.abort_seen)


def test_a_closed_client_says_so() -> None:
    client = Client("127.0.0.1:1")
    client.close()
    client.close()
    for act in (
        lambda: client.generate("x"),
        lambda: list(client.stream("x")),
        lambda: client.wait_ready(1.0),
    ):
        with pytest.raises(ClientError, match="CANCELLED: the client is closed"):
            act()


async def test_a_closed_async_client_says_so() -> None:
    client = AsyncClient("127.0.0.1:1")
    await client.close()
    for call in (client.generate("x"), anext(client.stream("x")), client.wait_ready(1.0)):
        with pytest.raises(ClientError, match="CANCELLED: the client is closed"):
            await call


async def test_closing_an_async_client_is_no_cancellation_of_its_readers() -> None:
    """A channel that closes cancels its calls; the task that reads one was not cancelled."""
    engine = FakeEngine(tokens(40), asyncio.Event())
    async with running(engine) as service:
        client = AsyncClient(service.server.address)
        stream = client.stream("x")
        assert isinstance(await anext(stream), Started)
        reading = asyncio.ensure_future(_drain(stream))
        answering = asyncio.ensure_future(client.generate("y"))
        while engine.num_running < 2:
            engine.started.clear()
            await asyncio.wait_for(engine.started.wait(), PATIENCE)
        await client.close()
        for task in (reading, answering):
            with pytest.raises(ClientError, match="CANCELLED"):
                await asyncio.wait_for(task, PATIENCE)


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_a_reader_that_is_cancelled_stays_cancelled() -> None:
    engine = FakeEngine(tokens(40), asyncio.Event())
    async with running(engine) as service, AsyncClient(service.server.address) as client:
        reading = asyncio.ensure_future(_drain(client.stream("x")))
        await asyncio.wait_for(engine.started.wait(), PATIENCE)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(engine.abort_seen.wait(), PATIENCE)


def test_closing_ends_the_pause_before_another_attempt() -> None:
    refused = threading.Event()
    with watching(refused), serving(ready=False) as server:
        client = Client(server.address)
        ended = begin(list, client.stream("x"))
        assert refused.wait(PATIENCE)
        client.close()
        error = ended.get(timeout=PATIENCE)
    assert isinstance(error, ClientError)
    assert error.code == "CANCELLED"


def unavailable(retry_after: float | None = None) -> ClientError:
    return ClientError("UNAVAILABLE", "later", retry_after=retry_after)


def test_attempts_are_bounded_and_further_apart_each_time() -> None:
    attempts = Attempts(60.0, retries=True)
    pauses = [attempts.pause(unavailable(), heard=False) for _ in range(MAX_ATTEMPTS)]
    assert pauses[-1] is None
    found = [pause for pause in pauses if pause is not None]
    assert len(found) == MAX_ATTEMPTS - 1
    assert found == sorted(found)
    assert 0.08 <= found[0] <= 0.12


@pytest.mark.parametrize(
    ("error", "heard", "retries"),
    [
        (unavailable(), True, True),
        (unavailable(), False, False),
        (unavailable(retry_after=-1.0), False, True),
        (unavailable(retry_after=3600.0), False, True),
        (ClientError("RESOURCE_EXHAUSTED", "full", retry_after=0.1), False, True),
        (ClientError("INTERNAL", "a bug"), False, True),
        (ClientError("DEADLINE_EXCEEDED", "late"), False, True),
    ],
)
def test_what_is_not_sent_again(error: ClientError, heard: bool, retries: bool) -> None:
    assert Attempts(60.0, retries=retries).pause(error, heard=heard) is None


def test_a_server_says_how_long_to_wait() -> None:
    assert Attempts(60.0, retries=True).pause(unavailable(retry_after=5.0), heard=False) == 5.0
    assert pushback({"grpc-retry-pushback-ms": "1500"}) == 1.5
    assert pushback({"grpc-retry-pushback-ms": "-1"}) == -0.001
    assert pushback({"grpc-retry-pushback-ms": "soon"}) == -1.0
    assert pushback({}) is None


def test_a_call_is_never_without_a_deadline() -> None:
    attempts = Attempts(0.001, retries=True)
    while time.monotonic() < attempts._deadline:
        pass
    assert attempts.remaining > 0
    assert attempts.pause(unavailable(), heard=False) is None


class _Refusing(grpc.GenericRpcHandler):
    """Ends a stream with UNAVAILABLE, after one message where it is told to; counts the calls."""

    def __init__(self, *, after_a_message: bool) -> None:
        self.num_calls = 0
        self._after_a_message = after_a_message

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def answer(_: bytes, context: grpc.ServicerContext) -> Any:
            self.num_calls += 1
            if self._after_a_message:
                yield pb.GenerateStreamResponse(prompt=pb.PromptInfo(request_id="a")).SerializeToString()
            context.abort(grpc.StatusCode.UNAVAILABLE, "later")

        return grpc.unary_stream_rpc_method_handler(answer)


@pytest.mark.parametrize(("after_a_message", "num_calls"), [(False, MAX_ATTEMPTS), (True, 1)])
def test_a_stream_is_sent_again_only_while_nothing_has_come(after_a_message: bool, num_calls: int) -> None:
    handler = _Refusing(after_a_message=after_a_message)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client, pytest.raises(ClientError, match="UNAVAILABLE"):
            list(client.stream("x", timeout=PATIENCE))
        assert handler.num_calls == num_calls
        handler.num_calls = 0
        with pytest.raises(ClientError, match="UNAVAILABLE"):
            asyncio.run(_stream_of(f"127.0.0.1:{port}"))
        assert handler.num_calls == num_calls
    finally:
        server.stop(None).wait()


async def _stream_of(address: str) -> None:
    async with AsyncClient(address) as client:
        await _read(client, PATIENCE)
