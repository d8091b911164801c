"""Counts every gRPC call and its code. Methods that there are not count as one."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from coordinator.api.telemetry.fronts import UNKNOWN, FrontMetrics

_NAMES = {status.value[0]: status.name for status in grpc.StatusCode}

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Outermost, so that refused calls count as well."""

    def __init__(self, metrics: FrontMetrics) -> None:
        self._metrics = metrics
        # By method, a handler and the same one counted: those of open services are the same for each call.
        self._counted: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None:
            self._metrics.call_started("unary", UNKNOWN, UNKNOWN)
            self._metrics.call_ended("unary", UNKNOWN, UNKNOWN, "UNIMPLEMENTED", 0.0)
            return None
        before, counted = self._counted.get(details.method, (None, None))
        if before is handler:
            return counted
        # A handler for what does not exist is the key check's: its name is the caller's invention.
        if handler.request_deserializer is None:
            return _counted(handler, ("unary", UNKNOWN, UNKNOWN), self._metrics)
        _, service, method = f"{details.method}//".split("/")[:3]
        counted = _counted(handler, (_kind(handler), service, method), self._metrics)
        self._counted[details.method] = handler, counted
        return counted


def _counted(handler: Any, names: tuple[str, str, str], metrics: FrontMetrics) -> Any:
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    async def counted(request: Any, context: Any) -> Any:
        started = time.monotonic()
        metrics.call_started(*names)
        try:
            result = behaviour(request, context)
            if hasattr(result, "__aiter__"):
                async for message in result:
                    await context.write(message)
                return None
            return await result
        finally:
            metrics.call_ended(*names, _code(context), time.monotonic() - started)

    return _maker(handler)(
        counted,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _code(context: Any) -> str:
    """The code that a call ends with, as far as its context knows."""
    if context.cancelled():
        remaining = context.time_remaining()
        return "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _NAMES.get(code, "OK") if code else "OK"


def _kind(handler: Any) -> str:
    """go-grpc's words."""
    if handler.request_streaming:
        return "bidi_stream" if handler.response_streaming else "client_stream"
    return "server_stream" if handler.response_streaming else "unary"


def _maker(handler: Any) -> Callable[..., Any]:
    return {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
