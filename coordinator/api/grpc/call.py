"""One gRPC call: its id, its errors, its log line. Knows nothing of what the method does."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf.message import Message

from coordinator.api.grpc.errors import status_code, status_metadata
from coordinator.api.requests.gate import Gate, draining
from coordinator.api.shared.errors import ApiError, Reason, translate
from coordinator.api.shared.request_ids import given_ids, id_headers
from coordinator.api.shared.request_log import log_details, log_fields
from coordinator.api.validation.violations import REQUEST_ID, Violations

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

TRACE_KEYS = ("traceparent", "tracestate")
# What an operator's tools ask once a second: nothing to be told of where it went well.
LOOKS = frozenset({"GetServerInfo", "GetLoad", "GetTopology"})
# A status waits behind what its caller has not read, for ever where the caller never reads. The server
# waits no longer than this: the status stays with grpc, and is gone with the caller.
STATUS_SECONDS = 5.0

# (what the call failed with, whether its caller went away).
OnEnd = Callable[[ApiError | None, bool], None]


class MalformedMessage:
    """Stands for bytes that are no message of the method's type; `fault` says why."""

    def __init__(self, fault: str = "is not a valid protobuf message of this method, or not UTF-8") -> None:
        self.fault = fault


class Call:
    """What is known of a call while it runs."""

    def __init__(self, method: str, message: Message | MalformedMessage, context: Context) -> None:
        self.method = method
        self.context = context
        self.started = time.monotonic()
        self.given_ids = given_ids(context.invocation_metadata() or ())
        own = getattr(message, "request_id", "")
        self.request_id = own if REQUEST_ID.fullmatch(own) else str(uuid4())
        self.code = "OK"
        self.reason = ""
        # Facts of the method's own for the log line; never a caller's text.
        self.facts: dict[str, object] = {}
        self.is_accepted = False
        self._error: ApiError | None = None
        self._on_end: OnEnd | None = None
        self._ended = False

    @property
    def peer(self) -> str:
        return str(self.context.peer())

    def on_end(self, listener: OnEnd) -> None:
        """`listener` is told how the call ended, instead of a line in the log."""
        self._on_end = listener

    def check(self, message: Message | MalformedMessage) -> None:
        """Refuses what cannot even be looked at. Raises ApiError."""
        violations = Violations()
        if isinstance(message, MalformedMessage):
            violations.add("message", message.fault)
        violations.raise_if_any()
        remaining = self.context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise ApiError.of(Reason.DEADLINE_EXCEEDED, "the deadline passed before the call began")

    async def accept(self) -> None:
        """Tells the caller the call's ids, and every proxy on the way that the call is alive."""
        if not self.is_accepted:
            self.is_accepted = True
            await self.context.send_initial_metadata(
                tuple(id_headers(self.request_id, self.given_ids).items())
            )

    async def fail(self, error: ApiError) -> None:
        """Ends the call with the error's status; raises AbortError, or CancelledError where the caller does
        not take it.

        What may be sent again goes out without initial metadata: clients do so by themselves only while they
        have seen none.
        """
        self.code, self.reason, self._error = error.code, error.reason, error
        self.end()
        metadata = status_metadata(error, self.request_id, self.given_ids)
        # Before a first message there is nothing that its caller has not read.
        limit = STATUS_SECONDS if self.is_accepted or error.retry_after is None else None
        try:
            async with nullcontext() if limit is None else asyncio.timeout(limit):
                if error.retry_after is None:
                    await self.accept()
                await self.context.abort(status_code(error), error.message, metadata)
        except (TimeoutError, grpc.aio.InternalError):
            raise gone() from None

    def left(self) -> None:
        """Its caller went away, or its deadline passed, which grpc tells the caller itself."""
        remaining = self.context.time_remaining()
        self.code = "CANCELLED"
        if remaining is not None and remaining <= 0:
            self._error = ApiError.of(Reason.DEADLINE_EXCEEDED, "the deadline passed")
            self.code, self.reason = self._error.code, self._error.reason

    def end(self) -> None:
        """Told once, whatever happened, and before its caller hears of it."""
        if self._ended:
            return
        self._ended = True
        if self._on_end is None:
            self._log()
        else:
            self._on_end(self._error, self._error is None and self.code != "OK")

    def _log(self) -> None:
        fields: dict[str, object] = {
            "id": self.request_id,
            **self.given_ids,
            "peer": self.peer,
            "code": self.code,
            "reason": self.reason,
            **self.facts,
            "seconds": round(time.monotonic() - self.started, 4),
        }
        is_look = self.method in LOOKS and self.code == "OK"
        log_fields(logger, self.method, fields, logging.DEBUG if is_look else logging.INFO)


@asynccontextmanager
async def rpc(
    method: str, message: Message | MalformedMessage, context: Context, gate: Gate
) -> AsyncIterator[Call]:
    """Wraps a method's body: whatever it raises becomes a status, and the call one line in the log."""
    call = Call(method, message, context)
    try:
        call.check(message)
        yield call
    except grpc.aio.AbortError:
        raise
    except asyncio.CancelledError:
        if gate.was_evicted():
            await call.fail(draining())
        call.left()
        raise
    except grpc.aio.InternalError:
        # The client went away in the middle of a write.
        call.code = "CANCELLED"
        raise gone() from None
    except Exception as error:  # noqa: BLE001 - the top of a call: nothing unforeseen may reach the client
        log_details(error, call.request_id)
        await call.fail(translate(error, call.request_id))
    finally:
        call.end()


def gone() -> asyncio.CancelledError:
    """What grpc takes without a word for the end of a call whose caller is not there; for its own error,
    which it raised before, it would write a trace into the log."""
    return asyncio.CancelledError()


def trace_parent(context: Context) -> dict[str, str]:
    """The W3C trace headers that came with a call."""
    metadata = context.invocation_metadata() or ()
    return {key: value for key, value in metadata if key in TRACE_KEYS and isinstance(value, str)}
