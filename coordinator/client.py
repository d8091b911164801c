"""Client and AsyncClient of an expertmesh server: the same methods, blocking and for asyncio.

    with Client("127.0.0.1:50051") as client:
        print(client.generate("def main():", max_tokens=20).text)

Every call has a timeout and raises ClientError. Closing a stream before its end cancels it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator import client_messages as messages
from coordinator import client_requests as requests
from coordinator.client_connection import Connection
from coordinator.client_messages import (
    ClientError,
    Completion,
    Delta,
    Event,
    Finished,
    GenerateOptions,
    ModelInfo,
    Prompt,
    Started,
    Summary,
)
from protos.expertmesh.v1 import generation_pb2 as pb
from protos.expertmesh.v1 import generation_pb2_grpc

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Completion",
    "Connection",
    "Delta",
    "Event",
    "Finished",
    "GenerateOptions",
    "ModelInfo",
    "Started",
    "Summary",
]

R = TypeVar("R")

DEFAULT_TIMEOUT = 300.0
_DETAILS_KEY = "grpc-status-details-bin"
_SERVING = health_pb2.HealthCheckResponse.SERVING
# Between two attempts to watch a server that went away.
_WATCH_BACKOFF = 0.1


class Client:
    """Blocking. Safe to share between threads."""

    def __init__(
        self, address: str, *, timeout: float = DEFAULT_TIMEOUT, connection: Connection | None = None
    ) -> None:
        """`timeout`, in seconds, is for a whole call, where the call itself gives none."""
        self.address = address
        self._timeout = _checked(timeout)
        connection = connection or Connection()
        self._metadata = connection.metadata
        self._channel = connection.open(address)
        self._stub: Any = generation_pb2_grpc.GenerationServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """Generates from a text or from token ids and returns the whole result."""
        request = requests.generate_request(prompt, options)
        return messages.completion(self._call(self._stub.Generate, request, timeout))

    def stream(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Generator[Event, None, None]:
        """Generates and yields Started, Delta ..., Finished, Summary as they come."""
        request = requests.generate_request(prompt, options)
        call = self._stub.GenerateStream(request, timeout=self._seconds(timeout), metadata=self._metadata)
        complete = False
        try:
            for response in call:
                complete = response.WhichOneof("event") == "summary"
                event = messages.event(response)
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            raise client_error(error) from None
        finally:
            call.cancel()
        if not complete:
            raise _incomplete()

    def tokenize(
        self, text: str, *, add_special_tokens: bool = True, timeout: float | None = None
    ) -> tuple[int, ...]:
        request = requests.tokenize_request(text, add_special_tokens)
        return tuple(self._call(self._stub.Tokenize, request, timeout).token_ids)

    def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = False, timeout: float | None = None
    ) -> str:
        request = requests.detokenize_request(token_ids, skip_special_tokens)
        text: str = self._call(self._stub.Detokenize, request, timeout).text
        return text

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        return messages.model_info(self._call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), timeout))

    def wait_ready(self, timeout: float) -> None:
        """Returns when the server can serve; ClientError when it cannot within `timeout` seconds."""
        health: Any = health_pb2_grpc.HealthStub(self._channel)
        deadline = time.monotonic() + timeout
        while (remaining := deadline - time.monotonic()) > 0:
            call = health.Watch(health_pb2.HealthCheckRequest(), timeout=remaining, wait_for_ready=True)
            try:
                if any(response.status == _SERVING for response in call):
                    return
            except grpc.RpcError as error:
                _raise_unless_passing(error)
            finally:
                call.cancel()
            time.sleep(_WATCH_BACKOFF)
        raise _not_ready(self.address, timeout)

    def close(self) -> None:
        """Ends all calls. Idempotent."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else _checked(timeout)

    def _call(self, method: Callable[..., R], request: Message, timeout: float | None) -> R:
        try:
            return method(request, timeout=self._seconds(timeout), metadata=self._metadata)
        except grpc.RpcError as error:
            raise client_error(error) from None


class AsyncClient:
    """For one event loop."""

    def __init__(
        self, address: str, *, timeout: float = DEFAULT_TIMEOUT, connection: Connection | None = None
    ) -> None:
        """`timeout`, in seconds, is for a whole call, where the call itself gives none."""
        self.address = address
        self._timeout = _checked(timeout)
        connection = connection or Connection()
        self._metadata = connection.metadata
        self._channel = connection.open_async(address)
        self._stub: Any = generation_pb2_grpc.GenerationServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """Generates from a text or from token ids and returns the whole result."""
        request = requests.generate_request(prompt, options)
        return messages.completion(await self._call(self._stub.Generate, request, timeout))

    async def stream(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Event, None]:
        """Generates and yields Started, Delta ..., Finished, Summary as they come."""
        request = requests.generate_request(prompt, options)
        call = self._stub.GenerateStream(request, timeout=self._seconds(timeout), metadata=self._metadata)
        complete = False
        try:
            async for response in call:
                complete = response.WhichOneof("event") == "summary"
                event = messages.event(response)
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            raise client_error(error) from None
        finally:
            call.cancel()
        if not complete:
            raise _incomplete()

    async def tokenize(
        self, text: str, *, add_special_tokens: bool = True, timeout: float | None = None
    ) -> tuple[int, ...]:
        request = requests.tokenize_request(text, add_special_tokens)
        response: pb.TokenizeResponse = await self._call(self._stub.Tokenize, request, timeout)
        return tuple(response.token_ids)

    async def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = False, timeout: float | None = None
    ) -> str:
        request = requests.detokenize_request(token_ids, skip_special_tokens)
        response: pb.DetokenizeResponse = await self._call(self._stub.Detokenize, request, timeout)
        return response.text

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        request = pb.GetModelInfoRequest()
        return messages.model_info(await self._call(self._stub.GetModelInfo, request, timeout))

    async def wait_ready(self, timeout: float) -> None:
        """Returns when the server can serve; ClientError when it cannot within `timeout` seconds."""
        health: Any = health_pb2_grpc.HealthStub(self._channel)
        deadline = time.monotonic() + timeout
        while (remaining := deadline - time.monotonic()) > 0:
            call = health.Watch(health_pb2.HealthCheckRequest(), timeout=remaining, wait_for_ready=True)
            try:
                async for response in call:
                    if response.status == _SERVING:
                        return
            except grpc.RpcError as error:
                _raise_unless_passing(error)
            finally:
                call.cancel()
            await asyncio.sleep(_WATCH_BACKOFF)
        raise _not_ready(self.address, timeout)

    async def close(self) -> None:
        """Ends all calls. Idempotent."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else _checked(timeout)

    async def _call(self, method: Callable[..., Awaitable[R]], request: Message, timeout: float | None) -> R:
        try:
            return await method(request, timeout=self._seconds(timeout), metadata=self._metadata)
        except grpc.RpcError as error:
            raise client_error(error) from None


def _checked(timeout: float) -> float:
    """grpc takes 0 for no deadline at all."""
    if not 0 < timeout < float("inf"):
        raise ClientError("INVALID_ARGUMENT", f"timeout: {timeout} is not a number of seconds > 0")
    return timeout


def client_error(error: Any) -> ClientError:
    """From grpc's own error, which both flavours raise as an RpcError that is also a Call."""
    trailing = dict(error.trailing_metadata() or ())
    return messages.error(error.code().name, error.details() or "", trailing.get(_DETAILS_KEY))


def _raise_unless_passing(error: Any) -> None:
    """While waiting, a server that is away or slow is no error; one without health checks is."""
    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise client_error(error) from None


def _not_ready(address: str, timeout: float) -> ClientError:
    return ClientError("DEADLINE_EXCEEDED", f"{address} is not ready after {timeout:g} s", "NOT_READY")


def _incomplete() -> ClientError:
    return ClientError("DATA_LOSS", "the stream ended without its summary")
