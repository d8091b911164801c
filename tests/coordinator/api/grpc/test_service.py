"""The service over a real server and channel, in front of a scripted engine."""

import asyncio
import logging
from typing import Any

import grpc
import pytest

from coordinator.engine.messages.errors import (
    CapacityError,
    DuplicateRequestError,
    EngineClosedError,
    EngineError,
)
from coordinator.engine.messages.output import FinishReason
from expertmesh.v1 import generation_pb2 as pb
from moe_model.errors import ExpertsLostError
from tests.coordinator.api.engine_kinds import BOTH_ENGINES, IN_PROCESS_ONLY
from tests.coordinator.api.fakes import (
    EOS,
    PATIENCE,
    FakeEngine,
    failure_of,
    generate_request,
    last,
    running,
    served_model,
    tiny_tokenizer,
    tokens,
)
from tests.coordinator.api.grammar import check_grammar

pytestmark = BOTH_ENGINES

EMOJI = "東京 🙂"


async def stream_of(call: Any) -> list[pb.GenerateStreamResponse]:
    events = [event async for event in call]
    check_grammar(events)
    return events


def joined(events: list[pb.GenerateStreamResponse]) -> pb.GenerateResponse:
    """As a client would join them; written apart from the product's own join."""
    response = pb.GenerateResponse(prompt=events[0].prompt)
    response.request_id, response.model = events[0].prompt.request_id, events[0].prompt.model
    output = response.outputs.add()
    for event in events[1:]:
        output.text += event.delta.text
        output.token_ids.extend(event.delta.token_ids)
        if event.HasField("finished"):
            output.finish_reason = event.finished.finish_reason
            if event.finished.HasField("stop_match"):
                output.stop_match.CopyFrom(event.finished.stop_match)
    response.usage.CopyFrom(events[-1].summary.usage)
    response.timings.CopyFrom(events[-1].summary.timings)
    return response


@pytest.mark.parametrize(
    "text",
    [
        'request_id: "a" sampling { seed: 1 }',
        'request_id: "a" sampling { temperature: 0 } response { return_token_ids: true }',
        'request_id: "a" sampling { seed: 1 } response { return_text: false return_token_ids: true }',
    ],
)
async def test_unary_equals_the_joined_stream(text: str) -> None:
    ids = tiny_tokenizer().encode(EMOJI, add_bos=False)
    script = [*(tokens(token_id) for token_id in ids), last(EOS, reason=FinishReason.STOP, stop=EOS)]
    async with running(FakeEngine(*script)) as service:
        unary = await service.stub.Generate(generate_request(text))
        events = await stream_of(service.stub.GenerateStream(generate_request(text)))
    assert unary == joined(events)
    assert unary.outputs[0].text == ("" if "return_text: false" in text else EMOJI)
    assert unary.usage.completion_tokens == len(ids) + 1


async def test_the_engine_gets_the_validated_request() -> None:
    async with running() as service:
        await service.stub.Generate(
            generate_request('request_id: "me" stopping { max_tokens: 7 stop_token_ids: 9 }')
        )
    (seen,) = service.engine.requests
    assert (seen.request_id, seen.stop.max_tokens, seen.stop.stop_token_ids) == ("me", 7, frozenset({9}))
    assert list(seen.prompt_ids) == tiny_tokenizer().encode("hello")
    assert service.engine.aborted == []


async def test_the_prompt_event_does_not_wait_for_the_first_token() -> None:
    hold = asyncio.Event()
    async with running(FakeEngine(hold, last(40))) as service:
        call = service.stub.GenerateStream(generate_request('request_id: "a"'))
        metadata = await asyncio.wait_for(call.initial_metadata(), PATIENCE)
        assert dict(metadata)["x-request-id"] == "a"
        reader = aiter(call)
        first = await asyncio.wait_for(anext(reader), PATIENCE)
        assert first.prompt.request_id == "a"
        hold.set()
        check_grammar([first, *[event async for event in reader]])


@pytest.mark.parametrize(
    ("field", "metadata", "expected"),
    [
        ("mine", (), "mine"),
        ("mine", (("x-request-id", "theirs"),), "theirs"),
        ("mine", (("x-request-id", ""), ("x-correlation-id", "second")), "mine"),
    ],
)
async def test_where_the_request_id_comes_from(
    field: str, metadata: tuple[tuple[str, str], ...], expected: str
) -> None:
    async with running() as service:
        message = generate_request()
        message.request_id = field
        call = service.stub.Generate(message, metadata=metadata)
        assert (await call).request_id == field
        told = dict(await call.initial_metadata())
        assert (told["x-expertmesh-request-id"], told["x-request-id"]) == (field, expected)


async def test_a_request_id_is_made_when_there_is_none() -> None:
    async with running() as service:
        first, second = [(await service.stub.Generate(generate_request())).request_id for _ in range(2)]
    assert len(first) == len(second) == 36
    assert first != second


async def test_an_id_in_flight_twice() -> None:
    hold = asyncio.Event()
    async with running(FakeEngine(hold, last(40))) as service:
        first = service.stub.GenerateStream(generate_request('request_id: "a"'))
        await asyncio.wait_for(service.engine.started.wait(), PATIENCE)
        for method in (service.stub.Generate, service.stub.GenerateStream):
            failed = await failure_of(method(generate_request('request_id: "a"')))
            assert (failed.code, failed.reason) == ("ALREADY_EXISTS", "DUPLICATE_REQUEST_ID")
            assert failed.details["ResourceInfo"].resource_name == "a"
        hold.set()
        await stream_of(first)
        await service.stub.Generate(generate_request('request_id: "a"'))
    assert service.engine.aborted == []


@pytest.mark.parametrize(
    ("text", "prompt", "code", "reason", "field"),
    [
        ("sampling { top_p: 2 }", "x", "INVALID_ARGUMENT", "INVALID_FIELD", "sampling.top_p"),
        ('model: "no"', "x", "NOT_FOUND", "MODEL_NOT_FOUND", None),
        ("", "x" * 500, "INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED", "prompt.text"),
        (
            "response { return_routed_experts: true }",
            "x",
            "UNIMPLEMENTED",
            "UNSUPPORTED_FEATURE",
            "response.return_routed_experts",
        ),
        (
            "stopping { stop_token_ids: [1, 999] }",
            "x",
            "INVALID_ARGUMENT",
            "TOKEN_ID_OUT_OF_RANGE",
            "stopping.stop_token_ids[1]",
        ),
    ],
)
async def test_refusals_on_both_methods(
    text: str, prompt: str, code: str, reason: str, field: str | None
) -> None:
    async with running() as service:
        for method in (service.stub.Generate, service.stub.GenerateStream):
            failed = await failure_of(method(generate_request('request_id: "a" ' + text, prompt)))
            assert (failed.code, failed.reason) == (code, reason)
            assert failed.fields == ([field] if field else [])
            assert failed.message.startswith(field or "model: ")
            assert failed.details["RequestInfo"].request_id == "a"
            # grpc's client may take the status of a stream first, and then knows of nothing before it.
            if failed.initial_metadata or method is service.stub.Generate:
                assert failed.initial_metadata["x-request-id"] == "a"
            assert failed.details_size <= 4096
    assert service.engine.requests == []


async def test_too_small_a_cache() -> None:
    async with running(model=served_model(kv_capacity_tokens=2)) as service:
        failed = await failure_of(service.stub.Generate(generate_request(prompt="a long enough prompt")))
    assert (failed.code, failed.reason) == ("FAILED_PRECONDITION", "KV_CAPACITY_TOO_SMALL")
    assert failed.metadata["capacity"] == "2"
    assert failed.details["PreconditionFailure"].violations[0].type == "KV_CAPACITY_TOO_SMALL"


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ExpertsLostError("10.0.0.7 /secret", ranks=(1,)), "UNAVAILABLE", "EXPERT_WORKER_LOST"),
        (EngineClosedError("/secret"), "UNAVAILABLE", "DRAINING"),
        (DuplicateRequestError("/secret"), "ALREADY_EXISTS", "DUPLICATE_REQUEST_ID"),
        (CapacityError("/secret"), "FAILED_PRECONDITION", "KV_CAPACITY_TOO_SMALL"),
        (MemoryError("/secret"), "RESOURCE_EXHAUSTED", "OUT_OF_MEMORY"),
        (EngineError("/secret"), "INTERNAL", "INTERNAL"),
        (ValueError("/secret"), "INTERNAL", "INTERNAL"),
    ],
)
async def test_errors_of_the_engine(error: Exception, code: str, reason: str) -> None:
    async with running(FakeEngine(tokens(40), error)) as service:
        for method in (service.stub.Generate, service.stub.GenerateStream):
            failed = await failure_of(method(generate_request('request_id: "a"')))
            assert (failed.code, failed.reason) == (code, reason)
            assert "secret" not in f"{failed.message} {failed.trailing_metadata}"
            assert ("RetryInfo" in failed.details) == (code == "UNAVAILABLE")
            if code == "INTERNAL":
                assert failed.message == "internal error, request a"
            if reason == "EXPERT_WORKER_LOST":
                assert failed.metadata == {"rank": "1"}


@IN_PROCESS_ONLY
async def test_deltas_before_an_error_arrive() -> None:
    async with running(FakeEngine(tokens(40), tokens(41), ExpertsLostError("lost"))) as service:
        call = service.stub.GenerateStream(generate_request())
        reader = aiter(call)
        kinds = [(await anext(reader)).WhichOneof("event") for _ in range(3)]
        assert kinds == ["prompt", "delta", "delta"]
        with pytest.raises(grpc.aio.AioRpcError):
            await anext(reader)


@IN_PROCESS_ONLY
async def test_an_engine_that_ends_without_a_last_output_is_our_bug() -> None:
    async with running(FakeEngine(tokens(40))) as service:
        assert (await failure_of(service.stub.Generate(generate_request()))).code == "INTERNAL"


@IN_PROCESS_ONLY
async def test_details_of_a_bug_are_in_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    async with running(FakeEngine(ValueError("the detail"))) as service:
        await failure_of(service.stub.Generate(generate_request('request_id: "a"')))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "request a" in record.getMessage()
    assert record.exc_info is not None
    assert "the detail" in str(record.exc_info[1])


async def test_a_large_prompt_is_checked_off_the_loop() -> None:
    async with running() as service:
        large = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * 100_000))
        large.stopping.context_overflow = pb.CONTEXT_OVERFLOW_SLIDE
        assert (await service.stub.Generate(large)).usage.prompt_tokens == 100_000


async def test_one_log_line_for_each_call_without_its_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="coordinator.api")
    async with running() as service:
        await service.stub.Generate(generate_request('request_id: "a"', prompt="s3cret"))
        await failure_of(
            service.stub.Generate(generate_request('request_id: "b" sampling { top_p: 2 }', prompt="s3cret"))
        )
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    for part in ("id=a", "code=OK", "tokens=3", "finish=length", "peer=", "seconds=", "front=grpc"):
        assert part in lines[0]
    assert "id=b" in lines[1]
    assert "code=INVALID_ARGUMENT reason=INVALID_FIELD" in lines[1]
    assert "s3cret" not in caplog.text
