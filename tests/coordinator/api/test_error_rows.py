"""Every row of the error table, provoked: over a real gRPC channel, and its twin over a real HTTP port."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import httpx
import pytest
import pytest_asyncio
from google.protobuf import text_format

from coordinator.api.http.json import MAX_BODY_BYTES
from coordinator.api.security.quotas import KeyQuotas
from coordinator.api.shared.errors import Reason
from coordinator.config.key_limits import Limits
from coordinator.engine.messages.output import FinishReason
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.both_fronts import Fronts, Setup, both_fronts
from tests.coordinator.api.clock import Clock
from tests.coordinator.api.engine_kinds import KINDS, scripted
from tests.coordinator.api.error_table import BAD, CASES, FULL, KEY, LONG, RATE, Case, guarded
from tests.coordinator.api.fakes import (
    PATIENCE,
    Failure,
    FakeEngine,
    Step,
    failure_of,
    generate_request,
    last,
)
from tests.coordinator.api.internals import INTERNALS

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALWAYS = frozenset({"ErrorInfo", "RequestInfo"})
TABLE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# Rows without a request of both fronts that meets them; each has a test of its own below or, the last one, in
# tests/integration/test_experts.py.
APART = {
    *(Reason.NOT_ALLOWED, Reason.QUOTA_EXCEEDED, Reason.EXPERTS_NOT_CHANGED),
    *(Reason.REQUEST_TOO_LARGE, Reason.UNSUPPORTED_ENCODING),
}


async def test_every_row_is_here() -> None:
    assert {case.grpc[1] for case in CASES} == set(Reason) - APART


@asynccontextmanager
async def refusing(case: Case) -> AsyncIterator[Fronts]:
    def play(request: Any) -> Sequence[Step]:
        return (asyncio.Event(),) if case.busy or case.hangs else case.script or (last(40),)

    engine = FakeEngine(play=play)
    async with both_fronts(engine, case.model(), case.setup) as fronts:
        running = fronts.stub.Generate(generate_request('request_id: "busy"')) if case.busy else None
        if running is not None:
            await asyncio.wait_for(engine.started.wait(), PATIENCE)
        if case.drains:
            fronts.gate.drain()
        yield fronts
        if running is not None:
            running.cancel()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def engine_kind(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async with scripted(request.param):
        yield request.param


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(engine_kind: str) -> AsyncIterator[Fronts]:
    """For the cases that need no server of their own."""
    async with both_fronts(FakeEngine()) as fronts:
        yield fronts


@TABLE
async def test_both_fronts(case: Case, plain: Fronts) -> None:
    async with nullcontext(plain) if case.is_plain else refusing(case) as fronts:
        await check_grpc(fronts, case)
        await check_http(fronts, case)


async def check_grpc(fronts: Fronts, case: Case) -> None:
    message = text_format.Parse(case.text, pb.GenerateRequest())
    metadata = (("authorization", f"Bearer {case.key}"),) if case.key else ()
    for method in (fronts.stub.Generate, fronts.stub.GenerateStream):
        check_failure(await failure_of(method(message, metadata=metadata, timeout=PATIENCE)), case)


def check_failure(failed: Failure, case: Case) -> None:
    assert (failed.code, failed.reason) == (case.grpc[0], case.grpc[1].value)
    assert failed.fields == ([case.where] if case.where else [])
    assert failed.message.startswith(f"{case.where}: " if case.where else "")
    assert "\n" not in failed.message
    assert set(failed.details) == ALWAYS | case.details
    assert failed.details_size <= 4096
    assert failed.details["ErrorInfo"].domain == "expertmesh"
    assert failed.metadata == case.metadata
    request_id = failed.details["RequestInfo"].request_id
    assert request_id == failed.trailing_metadata["x-request-id"]
    if "RetryInfo" in case.details:
        delay = failed.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds()
        assert delay == float(case.headers["retry-after"]), "both fronts give the same advice"
    if case.grpc[0] == "INTERNAL":
        assert failed.message == f"internal error, request {request_id}"
    assert not INTERNALS.search(f"{failed.message} {failed.details}")


async def check_http(fronts: Fronts, case: Case) -> None:
    headers = {"authorization": f"Bearer {case.key}"} if case.key else {}
    for stream in (False, True):
        if isinstance(case.body, bytes):
            content = case.body.replace(b"}", b', "stream": %s}' % json.dumps(stream).encode())
        else:
            content = json.dumps({**case.body, "stream": stream}).encode()
        check_answer(await fronts.http.post(case.path, content=content, headers=headers), case)


def check_answer(response: httpx.Response, case: Case) -> None:
    status, kind, code = case.http
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, case.param)
    assert set(error) == {"message", "type", "param", "code"}
    for name in ("retry-after", "x-should-retry", "www-authenticate"):
        assert response.headers.get(name) == case.headers.get(name)
    message = error["message"]
    if code == LONG and case.grpc[1] is Reason.CONTEXT_LENGTH_EXCEEDED:
        assert message.startswith("This model's maximum context length is 32 tokens. ")
    elif case.param:
        assert message.startswith(f"{case.param}: ")
    if status == 500:
        assert message == f"internal error, request {response.headers['x-request-id']}"
    assert response.headers["x-request-id"]
    assert not INTERNALS.search(response.text)


async def test_a_message_that_is_no_utf_8() -> None:
    """`text` with half a character; JSON in bytes that are none."""
    async with both_fronts(FakeEngine()) as fronts:
        raw: Any = fronts.channel.unary_unary("/expertmesh.v1.GenerationService/Generate")
        failed = await failure_of(raw(b"\x1a\x02\xc3\x28"))
        assert (failed.code, failed.reason, failed.fields) == (
            *("INVALID_ARGUMENT", "INVALID_FIELD"),
            ["message"],
        )
        response = await fronts.http.post("/v1/completions", content=b'{"prompt": "\xc3("}')
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_value")


async def test_a_key_that_is_not_an_operator_s() -> None:
    """No HTTP route asks for one, so this row has only its gRPC half."""
    async with both_fronts(FakeEngine(), setup=guarded(needs_admin=True)) as fronts:
        metadata = (("authorization", f"Bearer {KEY}"),)
        failed = await failure_of(fronts.stub.Generate(generate_request(), metadata=metadata))
    assert (failed.code, failed.reason) == ("PERMISSION_DENIED", "NOT_ALLOWED")
    assert set(failed.details) == ALWAYS


async def test_a_quota_that_is_used_up() -> None:
    quotas = KeyQuotas(lambda name: Limits(rps=0.5), Clock())
    async with both_fronts(FakeEngine(), setup=Setup(quotas=quotas)) as fronts:
        await fronts.stub.Generate(generate_request())
        failed = await failure_of(fronts.stub.Generate(generate_request()))
        response = await fronts.http.post("/v1/completions", json={"prompt": "x"})
    assert (failed.code, failed.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    assert set(failed.details) == ALWAYS | FULL
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (429, RATE, "quota_exceeded")
    assert response.headers["retry-after"] == "2"
    assert failed.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == 2


async def test_more_than_a_message_may_be() -> None:
    async with both_fronts(FakeEngine()) as fronts:
        failed = await failure_of(fronts.stub.Generate(generate_request(prompt="x" * MAX_BODY_BYTES)))
        assert failed.code == "RESOURCE_EXHAUSTED"
        response = await fronts.http.post("/v1/completions", json={"prompt": "x" * MAX_BODY_BYTES})
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (413, BAD)
        assert error["code"] == "request_too_large"
        await fronts.stub.Generate(generate_request())


async def test_a_deadline_of_the_client_s_own() -> None:
    async with both_fronts(FakeEngine(asyncio.Event())) as fronts:
        for method in (fronts.stub.Generate, fronts.stub.GenerateStream):
            with pytest.raises(Exception, match="Deadline Exceeded") as caught:
                await consumed(method(generate_request(), timeout=0.2))
            assert caught.value.code().name == "DEADLINE_EXCEEDED"  # type: ignore[attr-defined]


async def consumed(call: Any) -> None:
    if not hasattr(call, "__aiter__"):
        await call
        return
    async for _ in call:
        pass


async def test_an_end_by_the_operator_is_no_error() -> None:
    async with both_fronts(FakeEngine(last(40, reason=FinishReason.ABORT))) as fronts:
        answer = await fronts.stub.Generate(generate_request())
        assert answer.outputs[0].finish_reason == pb.FINISH_REASON_ABORTED
        response = await fronts.http.post("/v1/completions", json={"prompt": "x"})
        assert (response.status_code, response.json()["choices"][0]["finish_reason"]) == (200, "abort")
