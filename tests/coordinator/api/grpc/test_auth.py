"""Who is let in at the port: every method, every kind of call, every kind of header."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.api.grpc.auth import AuthInterceptor
from coordinator.api.grpc.port import GrpcPort
from coordinator.api.grpc.server import GrpcServer
from coordinator.api.requests.gate import Gate
from coordinator.api.requests.responses import Front
from coordinator.api.security.api_keys import ApiKeys, key_of
from coordinator.api.security.auth import Identity, KeyAuthenticator, NoAuthenticator, current_identity
from coordinator.api.security.backoff import Backoff
from coordinator.api.security.quotas import KeyQuotas
from coordinator.config.key_limits import Limits
from expertmesh.v1 import control_pb2, generation_pb2_grpc
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.clock import Clock
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import PATIENCE, Failure, FakeEngine, failure_of, served_model

pytestmark = BOTH_ENGINES

ALICE, ROOT = "em-alice-alice-alice", "em-root-root-root-root"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
METHODS = [
    *(
        f"/{service.full_name}/{method.name}"
        for module in (pb, control_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/expertmesh.v1.GenerationService/NoSuchMethod",
    "/no.such.Service/Method",
    "/grpc.health.v1.HealthX/Check",
    "/grpc.health.v1/Health/Check",
    "/",
    "/x",
]


def authenticator(clock: Clock | None = None) -> KeyAuthenticator:
    keys = ApiKeys([key_of("alice", ALICE), key_of("root", ROOT, is_admin=True)])
    return KeyAuthenticator(keys, Backoff(clock=clock or Clock()))


def bearer(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


class Echo:
    """A service with one method of each kind, in each way of writing one; tells who asked."""

    def __init__(self) -> None:
        self.num_parsed = 0
        self.called = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        makers = {kind: getattr(grpc, f"{kind}_rpc_method_handler") for kind in KINDS}
        behaviours = {kind: getattr(self, kind) for kind in KINDS} | {
            f"{kind}_written": self.written for kind in KINDS if kind.endswith("_stream")
        }
        handlers = {
            name: makers[name.removesuffix("_written")](behaviour, request_deserializer=self.parse)
            for name, behaviour in behaviours.items()
        }
        return grpc.method_handlers_generic_handler("test.Echo", handlers)

    def parse(self, data: bytes) -> bytes:
        self.num_parsed += 1
        return data

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        self.called.set()
        return self.answer(request)

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.called.set()
        for _ in range(3):
            yield self.answer(request)

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self.called.set()
        return self.answer(b"".join([request async for request in requests]))

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.called.set()
        async for request in requests:
            yield self.answer(request)

    async def written(self, request: Any, context: Any) -> None:
        self.called.set()
        await context.write(self.answer(b""))

    @staticmethod
    def answer(data: bytes) -> bytes:
        identity = current_identity.get()
        return json.dumps([data.decode(), None if identity is None else identity.key_id]).encode()


@asynccontextmanager
async def echoing(**options: Any) -> AsyncIterator[tuple[Echo, grpc.aio.Channel]]:
    echo, interceptor = Echo(), AuthInterceptor(authenticator(), **options)
    port = GrpcPort("127.0.0.1:0", {"test.Echo": echo.handler()}, interceptors=[interceptor])
    port.bind()
    await port.start()
    try:
        async with grpc.aio.insecure_channel(port.address) as channel:
            yield echo, channel
    finally:
        await port.close()


@asynccontextmanager
async def guarded(
    engine: FakeEngine | None = None, clock: Clock | None = None
) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    interceptor = AuthInterceptor(authenticator(clock))
    server = GrpcServer("127.0.0.1:0", interceptors=[interceptor])
    server.bind()
    await server.start()
    await server.set_ready(served_model(), engine or FakeEngine())
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield server, channel
    finally:
        await server.close()


def start(channel: grpc.aio.Channel, method: str, kind: str, metadata: Any = None) -> Any:
    """A raw call; one that streams sends nothing, and does not end."""
    call = getattr(channel, kind)(method)
    if kind.startswith("unary"):
        return call(b"", metadata=metadata, timeout=PATIENCE)
    return call(metadata=metadata, timeout=PATIENCE)


def check_refusal(failed: Failure, code: str, reason: str) -> None:
    assert (failed.code, failed.reason) == (code, reason)
    assert failed.details["ErrorInfo"].domain == "expertmesh"
    request_id = failed.trailing_metadata["x-request-id"]
    assert request_id == failed.details["RequestInfo"].request_id
    # On a busy machine grpc's client forgets what began a stream when its end has come as well.
    assert failed.initial_metadata.get("x-request-id", request_id) == request_id
    assert "\n" not in failed.message


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_answered_without_a_key(kind: str) -> None:
    async with guarded() as (_, channel):
        for method in METHODS:
            failed = await failure_of(start(channel, method, kind))
            check_refusal(failed, "UNAUTHENTICATED", "MISSING_API_KEY")
            assert "x-request-id" in failed.initial_metadata or kind.endswith("stream")
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", "liveness", "expertmesh.v1.GenerationService"):
            await stub.Check(health_pb2.HealthCheckRequest(service=name))


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_answered_with_a_wrong_key(kind: str) -> None:
    clock = Clock()
    async with guarded(clock=clock) as (_, channel):
        for method in METHODS:
            # One wrong key now and then slows nobody down.
            clock.now += 100
            failed = await failure_of(start(channel, method, kind, bearer("em-wrong-wrong-wrong")))
            check_refusal(failed, "UNAUTHENTICATED", "INVALID_API_KEY")


async def test_a_method_that_there_is_not_is_one_for_those_with_a_key() -> None:
    async with guarded() as (_, channel):
        for method in METHODS[-5:]:
            for kind in KINDS:
                call = start(channel, method, kind, bearer(ALICE))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await (call.read() if kind.endswith("stream") else call)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_is_for_everybody() -> None:
    async with guarded() as (_, channel):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for metadata in (None, bearer("wrong"), bearer(ALICE)):
            watch = aiter(stub.Watch(health_pb2.HealthCheckRequest(), metadata=metadata, timeout=PATIENCE))
            assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("kind", [*KINDS, "unary_stream_written", "stream_stream_written"])
async def test_every_kind_of_method_knows_its_caller(kind: str) -> None:
    streams = kind.startswith("stream")
    async with echoing() as (_, channel):
        for secret, name in ((ALICE, "alice"), (ROOT, "root")):
            make = getattr(channel, kind.removesuffix("_written"))(f"/test.Echo/{kind}")
            call = make(iter([b"hi"]) if streams else b"hi", metadata=bearer(secret), timeout=PATIENCE)
            answers = [answer async for answer in call] if "_stream" in kind else [await call]
            assert answers
            sent = "" if kind.endswith("_written") else "hi"
            assert [json.loads(answer) for answer in answers] == [[sent, name]] * len(answers)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stranger_s_message_is_not_read(kind: str) -> None:
    async with echoing() as (echo, channel):
        call = getattr(channel, kind)(f"/test.Echo/{kind}")
        data = b"x" * (1 << 20)
        failed = await failure_of(call(iter([data]) if kind.startswith("stream") else data))
        # So grpc's client calls a refusal that came while it was still sending.
        cut_off = {"INTERNAL"} if kind == "stream_stream" else set()
        assert failed.code in {"UNAUTHENTICATED", *cut_off}
        assert echo.num_parsed == 0
        assert not echo.called.is_set()


@pytest.mark.parametrize("kind", KINDS)
async def test_admins_only(kind: str) -> None:
    async with echoing(needs_admin=True) as (echo, channel):
        method = f"/test.Echo/{kind}"
        failed = await failure_of(start(channel, method, kind, bearer(ALICE)))
        check_refusal(failed, "PERMISSION_DENIED", "NOT_ALLOWED")
        failed = await failure_of(start(channel, method, kind))
        check_refusal(failed, "UNAUTHENTICATED", "MISSING_API_KEY")
        assert not echo.called.is_set()
        call = start(channel, method, kind, bearer(ROOT))
        await asyncio.wait_for(echo.called.wait(), PATIENCE)
        call.cancel()


@pytest.mark.parametrize(
    "values",
    [
        *([f"Bearer {ALICE}", f"Bearer {ALICE}"], [f"Bearer {ALICE}", ""], ["", f"Bearer {ALICE}"]),
        *([f"Bearer {ALICE}, Bearer {ALICE}"], [f"Basic {ALICE}"], [ALICE], ["Bearer"], ["x" * 7000]),
        *([f"Bearer {ALICE.upper()}"], [f"Bearer {ALICE}x"]),
    ],
)
async def test_headers_that_are_none(values: list[str]) -> None:
    async with guarded() as (_, channel):
        metadata = tuple(("authorization", value) for value in values)
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        failed = await failure_of(stub.Generate(pb.GenerateRequest(text="hello"), metadata=metadata))
        check_refusal(failed, "UNAUTHENTICATED", "INVALID_API_KEY")


@pytest.mark.parametrize("header", ["bearer", "BEARER", "Bearer  "])
async def test_headers_that_are_one(header: str) -> None:
    engine = FakeEngine()
    async with guarded(engine) as (_, channel):
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        metadata = (("authorization", f"{header} {ALICE}"),)
        await stub.Generate(pb.GenerateRequest(text="hello"), metadata=metadata)
        # What is cached for one key is of no use to another.
        assert engine.requests[-1].cache_salt == b"alice"


async def test_a_thousand_guesses_are_slowed_and_lock_nobody_out() -> None:
    clock = Clock()
    async with guarded(clock=clock) as (_, channel):
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.GetModelInfoRequest()
        await stub.GetModelInfo(request, metadata=bearer(ALICE))

        async def guess(number: int) -> Failure:
            return await failure_of(stub.GetModelInfo(request, metadata=bearer(f"guess{number:020}")))

        for number in range(10):
            assert (await guess(number)).reason == "INVALID_API_KEY"
        failures = [await guess(number) for number in range(10, 1000)]
        for failed in (failures[0], failures[-1]):
            check_refusal(failed, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
            assert 0 < failed.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() <= 60
            assert "QuotaFailure" in failed.details
        assert {failed.reason for failed in failures} == {"QUOTA_EXCEEDED"}
        # Who was known there before is let in; who was not has to wait as well, and not for ever.
        await stub.GetModelInfo(request, metadata=bearer(ALICE))
        failed = await failure_of(stub.GetModelInfo(request, metadata=bearer(ROOT)))
        assert failed.reason == "QUOTA_EXCEEDED"
        clock.now += failed.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() + 0.001
        await stub.GetModelInfo(request, metadata=bearer(ROOT))


async def test_a_key_s_quota_is_its_own() -> None:
    quotas = KeyQuotas(lambda name: Limits(rps=0.01) if name == "alice" else Limits(), Clock())
    server = GrpcServer(
        "127.0.0.1:0", Front(Gate(), quotas=quotas), interceptors=[AuthInterceptor(authenticator())]
    )
    server.bind()
    await server.start()
    await server.set_ready(served_model(), FakeEngine())
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.GenerateRequest(text="hello")
        await stub.Generate(request, metadata=bearer(ALICE))
        failed = await failure_of(stub.Generate(request, metadata=bearer(ALICE)))
        assert (failed.code, failed.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
        assert failed.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == 100
        assert failed.details["QuotaFailure"].violations[0].subject == "requests"
        for _ in range(3):
            await stub.Generate(request, metadata=bearer(ROOT))
    await server.close()


async def test_logs_hold_no_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "em-MARKER1-MARKER1-MARKER1"
    metadata = (("authorization", f"Bearer {secret}"), ("x-other", "MARKER2"), ("x-marker3", "x"))
    async with guarded() as (_, channel):
        for method in ("/expertmesh.v1.GenerationService/Generate", "/MARKER4.%0a/MARKER5\x1b[31m\nfake"):
            for kind in KINDS:
                await failure_of(start(channel, method, kind, metadata))
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        await stub.Generate(pb.GenerateRequest(text="MARKER6"), metadata=bearer(ALICE))
        failed = await failure_of(stub.Generate(pb.GenerateRequest(text="MARKER6"), metadata=metadata))
    assert "code=UNAUTHENTICATED reason=INVALID_API_KEY" in caplog.text
    assert "Generate id=" in caplog.text
    assert "unknown id=" in caplog.text
    for text in (caplog.text.lower(), str(failed).lower()):
        assert "marker" not in text
        assert ALICE not in text
        assert "\x1b" not in text


async def test_without_keys_everybody_gets_in() -> None:
    server = GrpcServer("127.0.0.1:0", interceptors=[AuthInterceptor(NoAuthenticator(), needs_admin=True)])
    server.bind()
    await server.start()
    await server.set_ready(served_model(), FakeEngine())
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        for metadata in (None, bearer("anything")):
            await stub.Generate(pb.GenerateRequest(text="hello"), metadata=metadata)
    await server.close()


async def test_one_call_s_identity_is_not_another_s() -> None:
    async with echoing() as (_, channel):
        call: Any = channel.unary_unary("/test.Echo/unary_unary")
        secrets = [ALICE, ROOT] * 50
        answers = await asyncio.gather(*(call(b"", metadata=bearer(secret)) for secret in secrets))
        assert [json.loads(answer)[1] for answer in answers] == ["alice", "root"] * 50
    assert current_identity.get() is None
    assert Identity("x").key_id == "x"
