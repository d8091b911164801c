"""GenerationService on grpc.aio: messages in front of what all fronts share."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from google.protobuf.message import Message

from coordinator.api.grpc.call import Call, Context, rpc, trace_parent
from coordinator.api.grpc.methods import Behaviours
from coordinator.api.requests.event_join import join
from coordinator.api.requests.responses import Caller, Facts, Front, Work, admitted, off_loop
from coordinator.api.requests.stall_guard import StallGuard
from coordinator.api.security.auth import current_identity
from coordinator.api.shared import tokenization
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.served_model import ServedModel
from expertmesh.v1 import generation_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["GenerationService"]
# How long one message may wait for its reader.
WRITE_STALL_TIMEOUT = 60.0

M = TypeVar("M", bound=Message)
R = TypeVar("R")
E = TypeVar("E")


class GenerationService:
    """One method per RPC. Everything a call holds is given back when it ends, however it ends."""

    def __init__(self, front: Front, *, write_stall_timeout: float = WRITE_STALL_TIMEOUT) -> None:
        self._front = front
        self._gate = front.gate
        self._write_stall_timeout = write_stall_timeout

    async def generate(self, message: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        await self._check_room("Generate", message, context)
        async with _generation(Work.events, message, context, self._front) as (call, events):
            collected = []
            async for event in events:
                await call.accept()
                collected.append(event)
            return join(collected)

    async def generate_stream(self, message: pb.GenerateRequest, context: Context) -> None:
        await self._check_room("GenerateStream", message, context)
        # Written here and not yielded: a failing write ends this body at once, and with it the request.
        async with (
            _generation(Work.encoded, message, context, self._front) as (call, events),
            StallGuard(self._write_stall_timeout) as guard,
        ):
            async for event in events:
                try:
                    if not call.is_accepted:
                        await guard.wait(call.accept())
                    await guard.wait(context.write(event))
                except TimeoutError:
                    raise self._stalled() from None

    async def _check_room(self, name: str, message: pb.GenerateRequest, context: Context) -> None:
        """Refuses what cannot be let in now before it costs anything: under overload most calls are refused,
        and what they cost is missing at those that are not. Raises as Call.fail."""
        try:
            self._gate.check_room()
        except ApiError as error:
            call = Call(name, message, context)
            caller = _caller(call, context, streams=name == "GenerateStream")
            call.on_end(
                lambda error, _: self._front.observer.finished(caller, Facts(), error, cancelled=False)
            )
            await call.fail(error)

    def _stalled(self) -> ApiError:
        message = f"the client has read nothing for {self._write_stall_timeout:.0f} s"
        return ApiError.of(Reason.SLOW_CONSUMER, message)

    async def tokenize(self, message: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        return await self._answer("Tokenize", tokenization.tokenize, message, context)

    async def detokenize(self, message: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        return await self._answer("Detokenize", tokenization.detokenize, message, context)

    async def get_model_info(
        self, message: pb.GetModelInfoRequest, context: Context
    ) -> pb.GetModelInfoResponse:
        return await self._answer("GetModelInfo", tokenization.model_info, message, context)

    async def _answer(
        self, name: str, function: Callable[[M, ServedModel], R], message: M, context: Context
    ) -> R:
        async with rpc(name, message, context, self._gate) as call:
            with self._gate.call() as backend:
                response = await off_loop(function, message, backend.model)
                await call.accept()
                return response


@asynccontextmanager
async def _generation(
    events_of: Callable[[Work], AsyncGenerator[E, None]],
    message: pb.GenerateRequest,
    context: Context,
    front: Front,
) -> AsyncIterator[tuple[Call, AsyncGenerator[E, None]]]:
    """A call with its events. However it ends, its observer is told once."""
    facts = Facts()
    started = time.monotonic()
    streams = events_of is Work.encoded
    async with rpc("GenerateStream" if streams else "Generate", message, context, front.gate) as call:
        caller = _caller(call, context, streams=streams)
        call.on_end(lambda error, cancelled: _tell(front, caller, facts, started, error, cancelled))
        async with (
            admitted([message], caller, front, [facts]) as (work,),
            aclosing(events_of(work)) as events,
        ):
            yield call, events


def _tell(
    front: Front, caller: Caller, facts: Facts, started: float, error: ApiError | None, cancelled: bool
) -> None:
    facts.total_time = time.monotonic() - started
    front.observer.finished(caller, facts, error, cancelled=cancelled)


def _caller(call: Call, context: Context, *, streams: bool) -> Caller:
    identity = current_identity.get()
    remaining = context.time_remaining()
    return Caller(
        request_id=call.request_id,
        peer=call.peer,
        key_id="" if identity is None else identity.key_id,
        transport="grpc",
        streams=streams,
        trace_parent=trace_parent(context),
        given_ids=call.given_ids,
        deadline=None if remaining is None else time.monotonic() + remaining,
    )


def behaviours(service: GenerationService) -> Behaviours:
    """The methods by name, as methods.py takes them."""
    methods: dict[str, Callable[..., Any]] = {
        "Generate": service.generate,
        "GenerateStream": service.generate_stream,
        "Tokenize": service.tokenize,
        "Detokenize": service.detokenize,
        "GetModelInfo": service.get_model_info,
    }
    return methods
