"""AuthInterceptor: nothing but health is answered to callers that are not known. Default is to deny."""

import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.empty_pb2 import Empty

from coordinator.api.grpc.call import Call, Context
from coordinator.api.security.auth import Authenticator, Identity, current_identity, require_admin, single
from coordinator.api.shared.errors import ApiError

OPEN_SERVICE = "/grpc.health.v1.Health/"
UNKNOWN_METHOD = "unknown"
_METHOD = re.compile(r"/[A-Za-z0-9_.]{1,100}/(?P<name>[A-Za-z0-9_]{1,64})")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Behaviour = Callable[[Any, Any], Any]


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Checks every call but those of health, also calls of methods that there are not.

    A caller without a valid key is refused before a message is read; the identity of any other caller is in
    `current_identity` while its method runs.
    """

    def __init__(self, authenticator: Authenticator, *, needs_admin: bool = False) -> None:
        self._authenticator = authenticator
        self._needs_admin = needs_admin

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        if self._authenticator.is_open or details.method.startswith(OPEN_SERVICE):
            return await continuation(details)
        check = self._check_of(details)
        if check.refuses:
            return _refusal(check)
        handler = await continuation(details)
        return None if handler is None else _checked(handler, check)

    def _check_of(self, details: grpc.HandlerCallDetails) -> "_Check":
        metadata = details.invocation_metadata or ()
        values = [value for key, value in metadata if key == "authorization" and isinstance(value, str)]
        who = self._authenticator.recognise(single(values))
        return _Check(self._authenticator, who, details.method, needs_admin=self._needs_admin)


class _Check:
    """One call's check: the half that needs its peer is left for when its context is there."""

    def __init__(
        self, authenticator: Authenticator, who: Identity | ApiError, method: str, *, needs_admin: bool
    ) -> None:
        self._authenticator = authenticator
        self._who = who
        self._method = method
        self._needs_admin = needs_admin

    @property
    def refuses(self) -> bool:
        """Whether there is nothing that could still let the call in."""
        return isinstance(self._who, ApiError) or (self._needs_admin and not self._who.is_admin)

    async def enter(self, context: Context) -> None:
        """Ends the call with a status, or leaves its identity to the method. Raises AbortError."""
        try:
            identity = self._authenticator.admit(self._who, str(context.peer()))
            if self._needs_admin:
                require_admin(identity)
        except ApiError as error:
            await self._refuse(error, context)
        else:
            current_identity.set(identity)

    async def _refuse(self, error: ApiError, context: Context) -> None:
        found = _METHOD.fullmatch(self._method)
        call = Call(found["name"] if found else UNKNOWN_METHOD, Empty(), context)
        try:
            await call.fail(error)
        finally:
            call.end()


def _refusal(check: _Check) -> Handler:
    """Refuses a call of any kind, without waiting for what its caller sends."""

    async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
        await check.enter(context)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _checked(handler: Handler, check: _Check) -> Handler:
    """The same handler, behind a check."""
    behaviour, make = _parts(handler)
    if inspect.isasyncgenfunction(behaviour):
        wrapped = _checked_generator(behaviour, check)
    else:
        wrapped = _checked_coroutine(behaviour, check)
    return make(
        wrapped,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _parts(handler: Any) -> tuple[Behaviour, Callable[..., Handler]]:
    """What a handler does, and how one of its kind is made."""
    if handler.request_streaming and handler.response_streaming:
        return handler.stream_stream, grpc.stream_stream_rpc_method_handler
    if handler.request_streaming:
        return handler.stream_unary, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        return handler.unary_stream, grpc.unary_stream_rpc_method_handler
    return handler.unary_unary, grpc.unary_unary_rpc_method_handler


def _checked_coroutine(behaviour: Behaviour, check: _Check) -> Behaviour:
    async def checked(request: Any, context: Context) -> Any:
        await check.enter(context)
        return await behaviour(request, context)

    return checked


def _checked_generator(behaviour: Behaviour, check: _Check) -> Behaviour:
    async def checked(request: Any, context: Context) -> AsyncIterator[Any]:
        await check.enter(context)
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                yield response

    return checked
