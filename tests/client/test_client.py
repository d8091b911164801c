"""Both clients against a real server with a scripted engine."""

import asyncio
import socket
from typing import Any

import grpc
import pytest

from coordinator.engine.messages.output import FinishReason
from expertmesh import (
    AsyncClient,
    Client,
    ClientError,
    Completion,
    Delta,
    Event,
    Finished,
    GenerateOptions,
    Started,
    Summary,
)
from expertmesh.requests import generate_request
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from moe_model.errors import ExpertsLostError
from tests.coordinator.api.background import serving
from tests.coordinator.api.engine_kinds import BOTH_ENGINES, IN_PROCESS_ONLY
from tests.coordinator.api.fakes import (
    EOS,
    PATIENCE,
    FakeEngine,
    last,
    logged,
    running,
    served_model,
    tiny_tokenizer,
    tokens,
)

pytestmark = BOTH_ENGINES

OPTIONS: GenerateOptions = {
    "request_id": "mine",
    "model": "default",
    "temperature": 0.5,
    "top_p": 0.75,
    "top_k": 7,
    "min_p": 0.25,
    "seed": 2**63,
    "max_tokens": 9,
    "min_tokens": 2,
    "stop_token_ids": [10, 11],
    "ignore_eos": True,
    "context_overflow": "slide",
    "return_text": True,
    "return_token_ids": True,
}


class Sync:
    """The blocking client behind the asynchronous one's face, so that one test checks both."""

    def __init__(self, address: str, **options: Any) -> None:
        self._client = Client(address, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: asyncio.to_thread(method, *args, **kwargs)

    async def __aenter__(self) -> "Sync":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def stream(self, *args: Any, **kwargs: Any) -> Any:
        for event in await asyncio.to_thread(lambda: list(self._client.stream(*args, **kwargs))):
            yield event


@pytest.fixture(params=[Sync, AsyncClient])
def flavour(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_options_are_the_fields_of_a_request() -> None:
    groups = ("sampling", "stopping", "response", "constraint", "experts")
    top = {field.name for field in pb.GenerateRequest.DESCRIPTOR.fields}
    leaves = top - {*groups, "text", "token_ids", "chat"}
    for group in groups:
        kind = pb.GenerateRequest.DESCRIPTOR.fields_by_name[group].message_type
        assert kind is not None
        leaves |= {field.name for field in kind.fields}
    # Tools are for other clients: this one sends and reads texts.
    of_tools = {"tools", "tool_choice", "parallel_tool_calls"}
    leaves |= {field.name for field in pb.ChatPrompt.DESCRIPTOR.fields} - {"messages", *of_tools}
    assert set(GenerateOptions.__annotations__) == leaves - {"choice"} | {"choices"}


def test_every_option_reaches_its_field() -> None:
    request = generate_request([5, 6], OPTIONS)
    assert list(request.token_ids.ids) == [5, 6]
    assert (request.request_id, request.model) == ("mine", "default")
    sampling, stopping = request.sampling, request.stopping
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.75, 7)
    assert (sampling.min_p, sampling.seed) == (0.25, 2**63)
    assert (stopping.max_tokens, stopping.min_tokens, stopping.ignore_eos) == (9, 2, True)
    assert list(stopping.stop_token_ids) == [10, 11]
    assert stopping.context_overflow == pb.CONTEXT_OVERFLOW_SLIDE
    assert request.response.return_text
    assert request.response.return_token_ids


def test_options_of_a_conversation() -> None:
    messages = [{"role": "user", "content": "x"}]
    options: GenerateOptions = {"continue_final_message": True, "template_kwargs": {"a": [1]}}
    chat = generate_request(messages, options).chat
    assert (len(chat.messages), chat.continue_final_message, chat.template_kwargs) == (1, True, '{"a": [1]}')


def test_what_is_not_given_is_not_sent() -> None:
    assert generate_request("x", {}) == pb.GenerateRequest(text="x")
    assert generate_request([], {}).WhichOneof("prompt") == "token_ids"


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ([-1], {}, "prompt.token_ids"),
        ([2**32], {}, "prompt.token_ids"),
        ("\ud800", {}, "prompt.text"),
        ("x", {"max_tokens": -1}, "stopping.max_tokens"),
        ("x", {"max_tokens": "many"}, "stopping.max_tokens"),
        ("x", {"seed": 2**64}, "sampling.seed"),
        ("x", {"stop_token_ids": [-5]}, "stopping.stop_token_ids"),
        ("x", {"context_overflow": "wrap"}, "stopping.context_overflow"),
        ("x", {"no_such_option": 1}, "no_such_option"),
        ("x", {"allowed_token_ids": [-1]}, "sampling.allowed_token_ids"),
        ("x", {"continue_final_message": True}, "prompt.chat.continue_final_message"),
        ([{"role": "user", "content": "x", "nam": "bob"}], {}, "prompt.chat.messages[0].nam"),
    ],
)
def test_what_no_message_can_hold_is_named(prompt: Any, options: Any, field: str) -> None:
    with pytest.raises(ClientError) as caught:
        generate_request(prompt, options)
    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", field)
    assert "\n" not in str(caught.value)


async def test_generate(flavour: Any) -> None:
    engine = FakeEngine(tokens(40), last(41, EOS, reason=FinishReason.STOP, stop=EOS))
    async with running(engine) as service, flavour(service.server.address) as client:
        result = await client.generate("hello", request_id="a", seed=5, return_token_ids=True)
    assert isinstance(result, Completion)
    assert (result.request_id, result.model, result.seed) == ("a", "tiny", 5)
    assert (result.text, result.token_ids) == (tiny_tokenizer().decode([40, 41]), (40, 41, EOS))
    assert (result.finish_reason, result.stop_token_id) == ("stop", EOS)
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (5, 3)
    assert (result.timings.queue_time, result.timings.total_time) == (0.25, 1.5)
    assert result.to_dict()["usage"]["completion_tokens"] == 3


@IN_PROCESS_ONLY
async def test_stream(flavour: Any) -> None:
    async with running() as service, flavour(service.server.address) as client:
        events: list[Event] = [
            event async for event in client.stream([5, 6], temperature=0.0, return_token_ids=True)
        ]
    assert isinstance(events[0], Started)
    assert (events[0].prompt_tokens, events[0].seed) == (2, None)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert [delta.token_ids for delta in deltas] == [(40,), (41,), (42,)]
    assert "".join(delta.text for delta in deltas) == tiny_tokenizer().decode([40, 41, 42])
    assert events[-2] == Finished("length")
    assert isinstance(events[-1], Summary)
    assert events[-1].usage.completion_tokens == 3


async def test_the_other_methods(flavour: Any) -> None:
    async with running() as service, flavour(service.server.address) as client:
        ids = await client.tokenize("hello")
        assert ids == tuple(tiny_tokenizer().encode("hello"))
        assert await client.tokenize("hello", add_special_tokens=False) == ids[1:]
        assert await client.detokenize(ids) == "<bos>hello"
        assert await client.detokenize(ids, skip_special_tokens=True) == "hello"
        info = await client.model_info()
    assert (info.model, info.aliases, info.max_context_length) == ("tiny", ("default",), 32)
    assert (info.num_moe_layers, info.num_experts, info.experts_per_token) == (3, 5, 2)


async def test_errors_are_one_line_with_reason_and_field(flavour: Any) -> None:
    async with running() as service, flavour(service.server.address) as client:
        for call in (client.generate("x", top_p=3.0), anext(client.stream("x", top_p=3.0))):
            with pytest.raises(ClientError) as caught:
                await call
            error = caught.value
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
            assert error.field == "sampling.top_p"
            assert str(error) == "INVALID_ARGUMENT: sampling.top_p: 3.0 is not in (0, 1]"


async def test_an_error_after_some_output(flavour: Any) -> None:
    async with (
        running(FakeEngine(tokens(40), ExpertsLostError("lost"))) as service,
        flavour(service.server.address) as client,
    ):
        with pytest.raises(ClientError) as caught:
            _ = [event async for event in client.stream("x")]
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "EXPERT_WORKER_LOST")


async def test_every_call_has_a_timeout(flavour: Any) -> None:
    async with running(FakeEngine(asyncio.Event())) as service:
        async with flavour(service.server.address, timeout=0.2) as client:
            for call in (client.generate("x"), client.generate("x", timeout=0.1)):
                with pytest.raises(ClientError) as caught:
                    await call
                assert caught.value.code == "DEADLINE_EXCEEDED"
            with pytest.raises(ClientError):
                _ = [event async for event in client.stream("x")]
        await asyncio.wait_for(service.engine.abort_seen.wait(), PATIENCE)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    """grpc would take 0 for no deadline."""
    with pytest.raises(ClientError, match="timeout"):
        Client("127.0.0.1:1", timeout=timeout)


def test_closing_a_stream_cancels_the_request() -> None:
    with serving(FakeEngine(tokens(40), asyncio.Event())) as server, Client(server.address) as client:
        stream = client.stream("x", request_id="a")
        assert isinstance(next(stream), Started)
        assert isinstance(next(stream), Delta)
        stream.close()
        server.wait_for(server.engine.abort_seen)
        assert server.engine.aborted == ["a"]


async def test_closing_an_async_stream_cancels_the_request() -> None:
    async with (
        running(FakeEngine(tokens(40), asyncio.Event())) as service,
        AsyncClient(service.server.address) as client,
    ):
        stream = client.stream("x", request_id="a")
        assert isinstance(await anext(stream), Started)
        assert isinstance(await anext(stream), Delta)
        await stream.aclose()
        await asyncio.wait_for(service.engine.abort_seen.wait(), PATIENCE)
    assert service.engine.aborted == ["a"]


async def test_a_server_that_is_not_there(flavour: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with flavour(address) as client:
            with pytest.raises(ClientError) as caught:
                await client.generate("x", timeout=PATIENCE)
            assert caught.value.code == "UNAVAILABLE"
            assert "\n" not in str(caught.value)
            with pytest.raises(ClientError, match=f"{address} is not ready after 0.3 s"):
                await client.wait_ready(0.3)


async def test_wait_ready_waits(flavour: Any) -> None:
    async with running(ready=False) as service, flavour(service.server.address) as client:
        with pytest.raises(ClientError) as caught:
            await client.wait_ready(0.2)
        assert caught.value.reason == "NOT_READY"
        waiting = asyncio.ensure_future(client.wait_ready(PATIENCE))
        await service.server.set_ready(served_model(), service.engine)
        await waiting
        await client.generate("x")


async def test_a_refused_call_is_sent_again(flavour: Any) -> None:
    """The retry policy of the channel gets a call over the moment before the server is ready."""
    async with running(ready=False) as service, flavour(service.server.address) as client:
        with logged("NOT_READY") as refused:
            call = asyncio.ensure_future(client.generate("x", timeout=PATIENCE))
            await asyncio.wait_for(refused.wait(), PATIENCE)
        await service.server.set_ready(served_model(), service.engine)
        assert (await call).usage.completion_tokens == 3


async def test_a_stream_without_its_summary_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    class CutOff:
        """A call that a broken proxy has ended too early, with OK."""

        def __init__(self, *_: object, **__: object) -> None:
            self._events = [pb.GenerateStreamResponse(prompt=pb.PromptInfo(request_id="a"))]

        def __iter__(self) -> Any:
            return iter(self._events)

        def cancel(self) -> None:
            pass

    class Stub:
        def __init__(self, channel: grpc.Channel) -> None:
            self.GenerateStream = CutOff

    monkeypatch.setattr(generation_pb2_grpc, "GenerationServiceStub", Stub)
    with Client("127.0.0.1:1") as client, pytest.raises(ClientError) as caught:
        list(client.stream("x"))
    assert caught.value.code == "DATA_LOSS"
