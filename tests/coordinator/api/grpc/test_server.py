"""Bind, readiness, drain and close of the server."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coordinator.api.grpc.port import OPTIONS
from coordinator.api.grpc.server import GrpcServer
from coordinator.api.requests.gate import Gate
from coordinator.api.requests.responses import Caller, Facts, Front, NullObserver
from coordinator.api.shared.errors import ApiError
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from moe_model.errors import ConfigError
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import (
    PATIENCE,
    Failure,
    FakeEngine,
    Running,
    failure,
    failure_of,
    last,
    running,
    served_model,
    tokens,
)
from tests.coordinator.api.grammar import check_grammar

pytestmark = BOTH_ENGINES

SERVICE = "expertmesh.v1.GenerationService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def request(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text="hello", **fields)


async def status(service: Running, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(service.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=name))).status)


async def statuses(service: Running) -> list[int]:
    return [await status(service, name) for name in ("", SERVICE, "liveness")]


def test_the_options_that_others_got_wrong() -> None:
    options = dict(OPTIONS)
    assert options["grpc.http2.min_ping_interval_without_data_ms"] == 5000
    assert options["grpc.max_receive_message_length"] == 16 << 20


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
async def test_port_zero_picks_one_and_tells(address: str) -> None:
    if address.startswith("[") and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = GrpcServer(address)
    bound = server.bind()
    await server.start()
    try:
        host, _, port = bound.rpartition(":")
        assert host == address.rpartition(":")[0]
        assert int(port) > 0
        assert server.address == bound
        async with grpc.aio.insecure_channel(bound) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            assert (await stub.Check(health_pb2.HealthCheckRequest(service="liveness"))).status == SERVING
    finally:
        await server.close()


async def test_a_second_server_on_the_port_fails_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    async with running() as service:
        second = GrpcServer(service.server.address)
        with pytest.raises(ConfigError, match=f"{service.server.address}: already in use") as caught:
            second.bind()
        assert "\n" not in str(caught.value)
        await second.close()
        # The first one still answers.
        await service.stub.Generate(request())
    assert capfd.readouterr().err == ""


async def test_a_bound_server_keeps_others_off_before_it_starts() -> None:
    first = GrpcServer("127.0.0.1:0")
    second = GrpcServer(first.bind())
    with pytest.raises(ConfigError):
        second.bind()
    await first.close()
    await second.close()


async def test_the_port_is_free_again_after_close() -> None:
    async with running() as service:
        address = service.server.address
    again = GrpcServer(address)
    assert again.bind() == address
    await again.close()
    await again.close()


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999"])
def test_a_bad_address_is_refused_before_anything(address: str) -> None:
    with pytest.raises(ConfigError):
        GrpcServer(address)


async def test_not_ready_until_told() -> None:
    async with running(ready=False) as service:
        assert await statuses(service) == [NOT_SERVING, NOT_SERVING, SERVING]
        for call in (
            service.stub.Generate(request()),
            service.stub.GenerateStream(request()),
            service.stub.Tokenize(pb.TokenizeRequest(text="x")),
            service.stub.GetModelInfo(pb.GetModelInfoRequest()),
        ):
            failed = await failure_of(call)
            assert (failed.code, failed.reason) == ("UNAVAILABLE", "NOT_READY")
            assert failed.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
        await service.server.set_ready(served_model(), service.engine)
        assert await statuses(service) == [SERVING, SERVING, SERVING]
        await service.stub.Generate(request())


async def test_an_unknown_service_has_no_health() -> None:
    async with running() as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status(service, "no.such.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watchers_see_each_change() -> None:
    async with running(ready=False) as service:
        stub: Any = health_pb2_grpc.HealthStub(service.channel)
        watch: AsyncIterator[Any] = aiter(stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE))
        assert (await anext(watch)).status == NOT_SERVING
        await service.server.set_ready(served_model(), service.engine)
        assert (await anext(watch)).status == SERVING
        await service.server.drain(1)
        assert (await anext(watch)).status == NOT_SERVING


async def test_reflection_lists_the_services() -> None:
    async with running() as service:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(service.channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([question])):
            names = {entry.name for entry in answer.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_drain_lets_the_running_finish_and_refuses_the_new() -> None:
    hold = asyncio.Event()
    async with running(FakeEngine(tokens(40), hold, last(41))) as service:
        call = service.stub.GenerateStream(request())
        reader = aiter(call)
        events = [await anext(reader), await anext(reader)]
        drain = asyncio.create_task(service.server.drain(PATIENCE))
        stub: Any = health_pb2_grpc.HealthStub(service.channel)
        async for response in stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE):
            if response.status == NOT_SERVING:
                break
        failed = await failure_of(service.stub.Generate(request()))
        assert (failed.code, failed.reason) == ("UNAVAILABLE", "DRAINING")
        assert await status(service, "liveness") == SERVING
        assert not drain.done()
        hold.set()
        check_grammar([*events, *[event async for event in reader]])
        assert await drain
    assert service.engine.aborted == []


@pytest.mark.parametrize("streaming", [True, False])
async def test_drain_ends_what_outlasts_it(streaming: bool) -> None:
    engine = FakeEngine(tokens(40), asyncio.Event())
    async with running(engine) as service:
        call = (service.stub.GenerateStream if streaming else service.stub.Generate)(request(request_id="a"))
        await asyncio.wait_for(engine.started.wait(), PATIENCE)
        assert not await service.server.drain(0.05)
        failed = await failure_of(call)
        assert (failed.code, failed.reason) == ("UNAVAILABLE", "DRAINING")
        assert engine.aborted == ["a"]
        assert service.server.num_calls == 0


async def test_close_ends_everything_at_once() -> None:
    engine = FakeEngine(tokens(40), asyncio.Event())
    async with running(engine) as service:
        call = service.stub.GenerateStream(request(request_id="a"))
        await asyncio.wait_for(engine.started.wait(), PATIENCE)
        await service.server.close()
        assert engine.aborted == ["a"]
        assert (await failure_of(call)).code == "UNAVAILABLE"


async def test_a_client_that_retries_gets_through_once_the_server_is_ready() -> None:
    """Only a refusal without initial metadata is retried by grpc itself."""
    policy = {"maxAttempts": 5, "initialBackoff": "0.3s", "maxBackoff": "1s", "backoffMultiplier": 1}
    method = {"name": [{}], "retryPolicy": {**policy, "retryableStatusCodes": ["UNAVAILABLE"]}}
    options = [("grpc.service_config", json.dumps({"methodConfig": [method]}))]
    observer = Refusals()
    server = GrpcServer("127.0.0.1:0", Front(Gate(), observer))
    server.bind()
    await server.start()
    async with grpc.aio.insecure_channel(server.address, options) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        call = asyncio.ensure_future(stub.Generate(request()))
        await asyncio.wait_for(observer.refused.wait(), PATIENCE)
        assert observer.reasons == ["NOT_READY"]
        await server.set_ready(served_model(), FakeEngine())
        assert (await asyncio.wait_for(call, PATIENCE)).usage.completion_tokens == 3
    await server.close()


class Refusals(NullObserver):
    """Hears of requests that end with an error."""

    def __init__(self) -> None:
        self.refused = asyncio.Event()
        self.reasons: list[str] = []

    def finished(self, caller: Caller, facts: Facts, error: ApiError | None, *, cancelled: bool) -> None:
        if error is not None:
            self.reasons.append(error.reason)
            self.refused.set()


async def test_during_the_grace_new_calls_are_admitted_and_health_says_go_away() -> None:
    hold = asyncio.Event()
    async with running(FakeEngine(tokens(40), hold, last(41))) as service:
        drain = asyncio.create_task(service.server.drain(PATIENCE, grace=3600))
        await _until_not_serving(service)
        assert await statuses(service) == [NOT_SERVING, NOT_SERVING, SERVING]
        late = service.stub.GenerateStream(request())
        assert (await anext(aiter(late))).prompt.model
        # A second signal: the grace is given up.
        drain.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drain
        # Whoever watches readiness cannot undo it.
        await service.server.set_serving(True)
        assert await status(service, "") == NOT_SERVING


async def test_after_the_grace_new_calls_are_refused() -> None:
    hold = asyncio.Event()
    async with running(FakeEngine(tokens(40), hold, last(41))) as service:
        early = service.stub.GenerateStream(request())
        reader = aiter(early)
        events = [await anext(reader), await anext(reader)]
        began = time.monotonic()
        drain = asyncio.create_task(service.server.drain(PATIENCE, grace=0.2))
        await _until_not_serving(service)
        refused = await _until_refused(service)
        assert (refused.code, refused.reason) == ("UNAVAILABLE", "DRAINING")
        assert time.monotonic() - began >= 0.2
        assert not drain.done()
        hold.set()
        check_grammar([*events, *[event async for event in reader]])
        assert await drain


async def _until_refused(service: Running) -> Failure:
    while True:
        try:
            await service.stub.GetModelInfo(pb.GetModelInfoRequest())
        except grpc.aio.AioRpcError as error:
            return failure(error)


async def _until_not_serving(service: Running) -> None:
    stub: Any = health_pb2_grpc.HealthStub(service.channel)
    async for response in stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE):
        if response.status == NOT_SERVING:
            return


async def test_fronts_that_share_a_gate_drain_together() -> None:
    gate = Gate()
    servers = [GrpcServer("127.0.0.1:0", Front(gate)) for _ in range(2)]
    engine = FakeEngine(tokens(40), asyncio.Event())
    for server in servers:
        server.bind()
        await server.start()
    await servers[0].set_ready(served_model(), engine)
    async with grpc.aio.insecure_channel(servers[1].address) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.GenerateStream(request(request_id="a"))
        await asyncio.wait_for(engine.started.wait(), PATIENCE)
        assert servers[0].num_calls == servers[1].num_calls == 1
        assert not await servers[0].drain(0.05)
        assert (await failure_of(call)).reason == "DRAINING"
    for server in servers:
        await server.close()
