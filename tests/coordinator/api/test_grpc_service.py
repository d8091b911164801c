"""The service over a real server and channel, in front of a scripted engine."""

import asyncio
import logging
from typing import Any

import grpc
import pytest
from google.protobuf import text_format

from coordinator.engine.async_engine import DuplicateRequestError, EngineClosedError
from coordinator.engine.engine import CapacityError, EngineError
from coordinator.engine.request import FinishReason
from moe_model.errors import ExpertsLostError
from protos.expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.fakes import (
    EOS,
    PATIENCE,
    FakeEngine,
    Running,
    failure_of,
    last,
    running,
    served_model,
    tiny_tokenizer,
    tokens,
)
from tests.coordinator.api.grammar import check_grammar

EMOJI = "東京 🙂"


def request(text: str = "", prompt: str = "hello") -> pb.GenerateRequest:
    return text_format.Parse(text, pb.GenerateRequest(text=prompt))


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


async def eventually_idle(running: Running) -> None:
    """The engine is told by the end of the call's own body, which the client does not wait for."""
    await asyncio.wait_for(running.engine.abort_seen.wait(), PATIENCE)
    assert running.engine.num_running == 0


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
        unary = await service.stub.Generate(request(text))
        events = await stream_of(service.stub.GenerateStream(request(text)))
    assert unary == joined(events)
    assert unary.outputs[0].text == ("" if "return_text: false" in text else EMOJI)
    assert unary.usage.completion_tokens == len(ids) + 1


async def test_the_engine_gets_the_validated_request() -> None:
    async with running() as service:
        await service.stub.Generate(request('request_id: "me" stopping { max_tokens: 7 stop_token_ids: 9 }'))
    (seen,) = service.engine.requests
    assert (seen.request_id, seen.stop.max_tokens, seen.stop.stop_token_ids) == ("me", 7, {9})
    assert list(seen.prompt_ids) == tiny_tokenizer().encode("hello")
    assert service.engine.aborted == []


async def test_the_prompt_event_does_not_wait_for_the_first_token() -> None:
    hold = asyncio.Event()
    async with running(FakeEngine(hold, last(40))) as service:
        call = service.stub.GenerateStream(request('request_id: "a"'))
        metadata = await asyncio.wait_for(call.initial_metadata(), PATIENCE)
        assert dict(metadata)["x-request-id"] == "a"
        first = await asyncio.wait_for(call.read(), PATIENCE)
        assert first.prompt.request_id == "a"
        hold.set()
        check_grammar([first, *[event async for event in call]])


@pytest.mark.parametrize(
    ("field", "metadata", "expected"),
    [
        ("mine", (("x-request-id", "theirs"),), "mine"),
        ("", (("x-request-id", "first"), ("x-correlation-id", "second")), "first"),
        ("", (("x-correlation-id", "second"),), "second"),
        ("", (("x-request-id", ""), ("x-correlation-id", "second")), "second"),
    ],
)
async def test_where_the_request_id_comes_from(
    field: str, metadata: tuple[tuple[str, str], ...], expected: str
) -> None:
    async with running() as service:
        message = request()
        message.request_id = field
        call = service.stub.Generate(message, metadata=metadata)
        assert (await call).request_id == expected
        assert dict(await call.initial_metadata())["x-request-id"] == expected


async def test_a_request_id_is_made_when_there_is_none() -> None:
    async with running() as service:
        first, second = [(await service.stub.Generate(request())).request_id for _ in range(2)]
    assert len(first) == len(second) == 36
    assert first != second


@pytest.mark.parametrize("key", ["x-request-id", "x-correlation-id"])
async def test_a_bad_id_in_the_metadata_is_named(key: str) -> None:
    async with running() as service:
        failed = await failure_of(service.stub.Generate(request(), metadata=((key, "a b"),)))
    assert (failed.code, failed.reason, failed.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", [key])
    assert failed.details["RequestInfo"].request_id == failed.trailing_metadata["x-request-id"]


async def test_an_id_in_flight_twice() -> None:
    hold = asyncio.Event()
    async with running(FakeEngine(hold, last(40))) as service:
        first = service.stub.GenerateStream(request('request_id: "a"'))
        await asyncio.wait_for(service.engine.started.wait(), PATIENCE)
        for method in (service.stub.Generate, service.stub.GenerateStream):
            failed = await failure_of(method(request('request_id: "a"')))
            assert (failed.code, failed.reason) == ("ALREADY_EXISTS", "DUPLICATE_REQUEST_ID")
            assert failed.details["ResourceInfo"].resource_name == "a"
        hold.set()
        await stream_of(first)
        await service.stub.Generate(request('request_id: "a"'))
    assert service.engine.aborted == []


@pytest.mark.parametrize(
    ("text", "prompt", "code", "reason", "field"),
    [
        ("sampling { top_p: 2 }", "x", "INVALID_ARGUMENT", "INVALID_FIELD", "sampling.top_p"),
        ('model: "no"', "x", "NOT_FOUND", "MODEL_NOT_FOUND", None),
        ("", "x" * 500, "INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED", "prompt.text"),
        (
            "sampling { num_sequences: 1 }",
            "x",
            "UNIMPLEMENTED",
            "UNSUPPORTED_FEATURE",
            "sampling.num_sequences",
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
            failed = await failure_of(method(request('request_id: "a" ' + text, prompt)))
            assert (failed.code, failed.reason) == (code, reason)
            assert failed.fields == ([field] if field else [])
            assert failed.message.startswith(field or "model: ")
            assert failed.details["RequestInfo"].request_id == "a"
            assert failed.initial_metadata["x-request-id"] == "a"
            assert failed.details_size <= 4096
    assert service.engine.requests == []


async def test_too_small_a_cache() -> None:
    async with running(model=served_model(kv_capacity_tokens=2)) as service:
        failed = await failure_of(service.stub.Generate(request(prompt="a long enough prompt")))
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
            failed = await failure_of(method(request('request_id: "a"')))
            assert (failed.code, failed.reason) == (code, reason)
            assert "secret" not in f"{failed.message} {failed.trailing_metadata}"
            assert ("RetryInfo" in failed.details) == (code == "UNAVAILABLE")
            if code == "INTERNAL":
                assert failed.message == "internal error, request a"
            if reason == "EXPERT_WORKER_LOST":
                assert failed.metadata == {"rank": "1"}


async def test_deltas_before_an_error_arrive() -> None:
    async with running(FakeEngine(tokens(40), tokens(41), ExpertsLostError("lost"))) as service:
        call = service.stub.GenerateStream(request())
        kinds = []
        with pytest.raises(grpc.aio.AioRpcError):
            async for event in call:
                kinds.append(event.WhichOneof("event"))
    assert kinds == ["prompt", "delta", "delta"]


async def test_an_engine_that_ends_without_a_last_output_is_our_bug() -> None:
    async with running(FakeEngine(tokens(40))) as service:
        assert (await failure_of(service.stub.Generate(request()))).code == "INTERNAL"


async def test_details_of_a_bug_are_in_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    async with running(FakeEngine(ValueError("the detail"))) as service:
        await failure_of(service.stub.Generate(request('request_id: "a"')))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "request a" in record.getMessage()
    assert record.exc_info is not None
    assert "the detail" in str(record.exc_info[1])


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("how", ["cancel", "deadline", "channel"])
async def test_whoever_leaves_aborts_the_request(streaming: bool, how: str) -> None:
    engine = FakeEngine(tokens(40), asyncio.Event())
    async with running(engine) as service:
        method = service.stub.GenerateStream if streaming else service.stub.Generate
        call = method(request('request_id: "a"'), timeout=0.5 if how == "deadline" else None)
        await asyncio.wait_for(engine.started.wait(), PATIENCE)
        if how == "cancel":
            call.cancel()
        elif how == "channel":
            await service.channel.close()
        await eventually_idle(service)
        assert engine.aborted == ["a"]
        if how == "deadline":
            assert (await call.code()) is grpc.StatusCode.DEADLINE_EXCEEDED
        # The place and the id are free again.
        assert await service.server._gate.wait_idle(PATIENCE)
        assert not service.server._gate._request_ids


async def test_a_client_that_leaves_during_a_write_aborts_the_request() -> None:
    """The server writes as fast as it can to a reader that reads nothing and then goes."""

    def endless(_: object) -> Any:
        while True:
            yield tokens(*range(40, 300))

    engine = FakeEngine(play=endless)
    async with running(engine) as service:
        call = service.stub.GenerateStream(request('request_id: "a" response { return_token_ids: true }'))
        await asyncio.wait_for(engine.started.wait(), PATIENCE)
        await asyncio.wait_for(call.read(), PATIENCE)
        call.cancel()
        await eventually_idle(service)
    assert engine.aborted == ["a"]


async def test_nothing_is_aborted_after_a_normal_end() -> None:
    async with running() as service:
        await service.stub.Generate(request())
        await stream_of(service.stub.GenerateStream(request()))
    assert service.engine.aborted == []
    assert service.engine.num_running == 0


async def test_a_deadline_that_has_passed_starts_nothing() -> None:
    async with running() as service:
        failed = await failure_of(service.stub.Generate(request(), timeout=0.0))
        assert failed.code == "DEADLINE_EXCEEDED"
        assert service.server.num_calls == 0
    assert service.engine.requests == []


@pytest.mark.parametrize("method", ["Generate", "GenerateStream", "Tokenize", "Detokenize", "GetModelInfo"])
@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x0a\x02\xc3\x28", b"\x12\x02\xc3\x28", b"\x0a\x7f"])
async def test_bytes_that_are_no_message(method: str, data: bytes) -> None:
    async with running() as service:
        path = f"/expertmesh.v1.GenerationService/{method}"
        streaming = method == "GenerateStream"
        raw = (service.channel.unary_stream if streaming else service.channel.unary_unary)(path)
        failed = await failure_of(raw(data))
        assert (failed.code, failed.reason, failed.fields) == (
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            ["message"],
        )
        assert "Error" not in failed.message
        await service.stub.Generate(request())


async def test_unknown_fields_are_left_out() -> None:
    async with running() as service:
        raw = service.channel.unary_unary("/expertmesh.v1.GenerationService/Generate")
        assert await raw(request().SerializeToString() + b"\xfa\x3f\x03abc")


async def test_a_message_that_is_too_large() -> None:
    async with running() as service:
        failed = await failure_of(service.stub.Generate(request(prompt="x" * (17 << 20))))
        assert failed.code == "RESOURCE_EXHAUSTED"
        await service.stub.Generate(request())


async def test_a_large_prompt_is_checked_off_the_loop() -> None:
    async with running() as service:
        large = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * 100_000))
        large.stopping.context_overflow = pb.CONTEXT_OVERFLOW_SLIDE
        assert (await service.stub.Generate(large)).usage.prompt_tokens == 100_000


async def test_one_log_line_for_each_call_without_its_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="coordinator.api")
    async with running() as service:
        await service.stub.Generate(request('request_id: "a"', prompt="s3cret"))
        await failure_of(
            service.stub.Generate(request('request_id: "b" sampling { top_p: 2 }', prompt="s3cret"))
        )
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    for part in ("Generate id=a", "code=OK", "tokens=3", "finish=length", "peer=", "seconds="):
        assert part in lines[0]
    assert "id=b" in lines[1]
    assert "code=INVALID_ARGUMENT reason=INVALID_FIELD" in lines[1]
    assert "s3cret" not in caplog.text


async def test_tokenize_and_detokenize() -> None:
    async with running() as service:
        response = await service.stub.Tokenize(pb.TokenizeRequest(text=EMOJI, return_token_bytes=True))
        assert response.token_ids[0] == 2
        assert b"".join(response.token_bytes[1:]).decode() == EMOJI
        assert response.max_context_length == 32
        bare = await service.stub.Tokenize(pb.TokenizeRequest(text=EMOJI, add_special_tokens=False))
        assert bare.token_ids == response.token_ids[1:]
        assert not bare.token_bytes
        back = await service.stub.Detokenize(pb.DetokenizeRequest(token_ids=response.token_ids))
        assert back.text == "<bos>" + EMOJI
        skipped = pb.DetokenizeRequest(token_ids=response.token_ids, skip_special_tokens=True)
        assert (await service.stub.Detokenize(skipped)).text == EMOJI
        assert (await service.stub.Detokenize(pb.DetokenizeRequest())).text == ""


@pytest.mark.parametrize(
    ("method", "message", "code", "field"),
    [
        ("Tokenize", pb.TokenizeRequest(), "INVALID_ARGUMENT", "input"),
        ("Tokenize", pb.TokenizeRequest(chat=pb.ChatPrompt()), "UNIMPLEMENTED", "chat"),
        ("Tokenize", pb.TokenizeRequest(text="x", model="no"), "NOT_FOUND", None),
        ("Tokenize", pb.TokenizeRequest(text="x" * ((4 << 20) + 1)), "INVALID_ARGUMENT", "text"),
        ("Detokenize", pb.DetokenizeRequest(token_ids=[1, 320]), "INVALID_ARGUMENT", "token_ids[1]"),
        ("Detokenize", pb.DetokenizeRequest(model="no"), "NOT_FOUND", None),
        ("GetModelInfo", pb.GetModelInfoRequest(model="no"), "NOT_FOUND", None),
    ],
)
async def test_refusals_of_the_other_methods(method: str, message: Any, code: str, field: str | None) -> None:
    async with running() as service:
        failed = await failure_of(getattr(service.stub, method)(message))
    assert (failed.code, failed.fields) == (code, [field] if field else [])


async def test_without_a_tokenizer() -> None:
    async with running(model=served_model(tokenizer=None)) as service:
        for call in (
            service.stub.Generate(request()),
            service.stub.Tokenize(pb.TokenizeRequest(text="x")),
            service.stub.Detokenize(pb.DetokenizeRequest(token_ids=[5])),
        ):
            failed = await failure_of(call)
            assert (failed.code, failed.reason) == ("FAILED_PRECONDITION", "NO_TOKENIZER")
        by_ids = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]))
        by_ids.response.return_token_ids = True
        (output,) = (await service.stub.Generate(by_ids)).outputs
        assert (output.text, list(output.token_ids)) == ("", [40, 41, 42])


async def test_model_info() -> None:
    async with running() as service:
        for name in ("", "tiny", "default"):
            info = await service.stub.GetModelInfo(pb.GetModelInfoRequest(model=name))
            assert (info.model, list(info.aliases)) == ("tiny", ["default"])
    assert info.architecture == "AssembledMoEModel"
    assert (info.max_context_length, info.max_output_tokens, info.vocab_size) == (32, 40, 320)
    assert list(info.eos_token_ids) == [EOS]
    assert (info.default_sampling.temperature, info.default_sampling.top_k) == (0.8, 50)
    assert (info.default_sampling.top_p, info.default_sampling.min_p) == (0.9, 0.0)
    assert (info.num_moe_layers, info.num_experts, info.experts_per_token) == (3, 5, 2)
    assert (info.max_num_sequences, info.max_logprobs) == (1, 0)
    assert not info.has_chat_template
    assert not info.supports_routed_experts
    assert not info.supported_constraints
