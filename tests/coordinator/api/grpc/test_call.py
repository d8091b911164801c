"""What one call does that a real client can hardly provoke."""

import asyncio
from typing import Any

import grpc
import pytest

from coordinator.api.grpc import call as grpc_call
from coordinator.api.grpc.call import rpc
from coordinator.api.requests.gate import Gate
from coordinator.api.shared.errors import ApiError, Reason
from expertmesh.v1 import generation_pb2 as pb


class FakeContext:
    """As much of a ServicerContext as a call uses."""

    def __init__(self, remaining: float | None = None) -> None:
        self.remaining = remaining
        self.code: grpc.StatusCode | None = None
        self.sent: list[Any] = []

    def time_remaining(self) -> float | None:
        return self.remaining

    def peer(self) -> str:
        return "peer"

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return (("x-request-id", "theirs"), ("x-other-bin", b"\xff"))

    async def send_initial_metadata(self, metadata: Any) -> None:
        self.sent.append(metadata)

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any) -> None:
        self.code = code
        raise grpc.aio.AbortError(details)


async def run(context: Any, body: BaseException | None = None) -> str:
    """Runs a call whose body raises; returns the code that its log line has."""
    call = None
    try:
        async with rpc("Method", pb.GenerateRequest(request_id="a"), context, Gate()) as call:
            if body is not None:
                raise body
    finally:
        assert call is None or call.request_id == "a"
    return call.code


@pytest.mark.parametrize("remaining", [0.0, -3.0])
async def test_a_deadline_that_has_passed_starts_nothing(remaining: float) -> None:
    context = FakeContext(remaining)
    entered = False
    with pytest.raises(grpc.aio.AbortError):
        async with rpc("Method", pb.GenerateRequest(), context, Gate()):  # type: ignore[arg-type]
            entered = True
    assert not entered
    assert context.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("error", [grpc.aio.AbortError("theirs"), asyncio.CancelledError()])
async def test_what_is_grpcs_own_is_left_to_grpc(error: BaseException) -> None:
    context = FakeContext()
    with pytest.raises(type(error)) as caught:
        await run(context, error)
    assert caught.value is error
    assert context.code is None


async def test_a_caller_that_went_away_during_a_write_leaves_no_trace() -> None:
    """For an error of its own grpc would log one; a cancel is silent."""
    context = FakeContext()
    with pytest.raises(asyncio.CancelledError):
        await run(context, grpc.aio.InternalError("gone"))
    assert context.code is None


class DeafContext(FakeContext):
    """Its caller never reads: no status ever gets through. Or it is gone when the status comes."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error
        self.waited = asyncio.Event()

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any) -> None:
        self.code = code
        if self.error is not None:
            raise self.error
        self.waited.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("error", [None, grpc.aio.InternalError("gone")])
async def test_a_status_that_nobody_takes_is_waited_for_in_vain_for_a_while(
    error: BaseException | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grpc_call, "STATUS_SECONDS", 0.05)
    caplog.set_level("INFO", logger="coordinator.api")
    context = DeafContext(error)
    running = asyncio.ensure_future(run(context, ApiError.of(Reason.SLOW_CONSUMER, "slow")))
    if error is None:
        await context.waited.wait()
        assert "reason=SLOW_CONSUMER" in caplog.text, "told before it waits"
    with pytest.raises(asyncio.CancelledError):
        await running
    assert caplog.text.count("SLOW_CONSUMER") == 1, "and told once"


@pytest.mark.parametrize(
    ("remaining", "code"), [(None, "CANCELLED"), (5.0, "CANCELLED"), (-0.1, "DEADLINE_EXCEEDED")]
)
async def test_the_log_tells_a_deadline_from_a_cancel(
    remaining: float | None, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="coordinator.api")
    context = FakeContext()

    async def cancelled() -> None:
        async with rpc("Method", pb.GenerateRequest(), context, Gate()):  # type: ignore[arg-type]
            context.remaining = remaining
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await cancelled()
    assert f"code={code}" in caplog.text


@pytest.mark.parametrize(
    ("reason", "initial"), [(Reason.NOT_READY, 0), (Reason.QUEUE_FULL, 0), (Reason.INVALID_FIELD, 1)]
)
async def test_only_what_can_be_retried_goes_out_without_initial_metadata(
    reason: Reason, initial: int
) -> None:
    context = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        await run(context, ApiError.of(reason, "no"))
    assert len(context.sent) == initial


async def test_a_call_that_ends_well() -> None:
    assert await run(FakeContext(10.0)) == "OK"
