"""Client and AsyncClient of an expertmesh server: the same methods, blocking and for asyncio.

    with Client("127.0.0.1:50051") as client:
        print(client.generate("def main():", max_tokens=20).text)

Every call ends within its timeout and a second, and raises ClientError. A call that the server could not take
is sent again, a stream as long as nothing of it has come. Closing a stream before its end cancels it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from types import TracebackType
from typing import Any, Self, Unpack

from grpc_health.v1 import health_pb2, health_pb2_grpc

from expertmesh import replies, requests
from expertmesh.calls import AsyncCalls, Calls, checked
from expertmesh.connection import Connection
from expertmesh.diagnosis import why_not_ready
from expertmesh.errors import ClientError
from expertmesh.results import (
    Completion,
    Event,
    GenerateOptions,
    ModelInfo,
    Prompt,
)
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

DEFAULT_TIMEOUT = 300.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
# Between two attempts to watch a server that went away.
_WATCH_BACKOFF = 0.1
# While a client waits, a server that is away or slow is no error; a server without health checks is one.
_PASSING = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


class Client:
    """Blocking. Safe to share between threads."""

    def __init__(
        self, address: str, *, timeout: float = DEFAULT_TIMEOUT, connection: Connection | None = None
    ) -> None:
        """`timeout`, in seconds, is for a whole call, where the call itself gives none.

        Raises ConfigError for an address or a file that cannot be used.
        """
        self.address = address
        self._connection = connection or Connection()
        self._calls = Calls(address, timeout, self._connection)
        self._stub: Any = generation_pb2_grpc.GenerationServiceStub(self._calls.channel)  # type: ignore[no-untyped-call]
        # Made here, as grpc ends the process when a stub is made of a closed channel.
        self._watch: Any = health_pb2_grpc.HealthStub(self._calls.channel).Watch

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """Generates from a text or from token ids and returns the whole result."""
        request = requests.generate_request(prompt, options)
        return replies.completion(self._calls.unary(self._stub.Generate, request, timeout))

    def stream(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Generator[Event, None, None]:
        """Generates and yields Started, Delta ..., Finished, Summary as they come."""
        request = requests.generate_request(prompt, options)
        complete = False
        with closing(self._calls.stream(self._stub.GenerateStream, request, timeout)) as responses:
            for response in responses:
                complete = response.WhichOneof("event") == "summary"
                event = replies.event(response)
                if event is not None:
                    yield event
        if not complete:
            raise _incomplete()

    def tokenize(
        self, text: str, *, add_special_tokens: bool = True, timeout: float | None = None
    ) -> tuple[int, ...]:
        request = requests.tokenize_request(text, add_special_tokens)
        return tuple(self._calls.unary(self._stub.Tokenize, request, timeout).token_ids)

    def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = False, timeout: float | None = None
    ) -> str:
        request = requests.detokenize_request(token_ids, skip_special_tokens)
        text: str = self._calls.unary(self._stub.Detokenize, request, timeout).text
        return text

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        return replies.model_info(
            self._calls.unary(self._stub.GetModelInfo, pb.GetModelInfoRequest(), timeout)
        )

    def wait_ready(self, timeout: float) -> None:
        """Returns when the server can serve; ClientError when it cannot within `timeout` seconds."""
        deadline = time.monotonic() + checked(timeout)
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                with closing(self._watched(remaining)) as answers:
                    if any(answer.status == _SERVING for answer in answers):
                        return
            except ClientError as error:
                if error.code not in _PASSING:
                    raise self._calls.explained(error) from None
            self._calls.pause(min(_WATCH_BACKOFF, max(0.0, deadline - time.monotonic())))
        raise _not_ready(self.address, timeout, why_not_ready(self.address, self._connection))

    def close(self) -> None:
        """Ends all calls. Idempotent."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watched(self, seconds: float) -> Generator[Any, None, None]:
        return self._calls.stream(self._watch, health_pb2.HealthCheckRequest(), seconds, waits=True)


class AsyncClient:
    """For one event loop."""

    def __init__(
        self, address: str, *, timeout: float = DEFAULT_TIMEOUT, connection: Connection | None = None
    ) -> None:
        """`timeout`, in seconds, is for a whole call, where the call itself gives none.

        Raises ConfigError for an address or a file that cannot be used.
        """
        self.address = address
        self._connection = connection or Connection()
        self._calls = AsyncCalls(address, timeout, self._connection)
        self._stub: Any = generation_pb2_grpc.GenerationServiceStub(self._calls.channel)  # type: ignore[no-untyped-call]
        # Made here, as grpc ends the process when a stub is made of a closed channel.
        self._watch: Any = health_pb2_grpc.HealthStub(self._calls.channel).Watch

    async def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """Generates from a text or from token ids and returns the whole result."""
        request = requests.generate_request(prompt, options)
        return replies.completion(await self._calls.unary(self._stub.Generate, request, timeout))

    async def stream(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Event, None]:
        """Generates and yields Started, Delta ..., Finished, Summary as they come."""
        request = requests.generate_request(prompt, options)
        complete = False
        async with aclosing(self._calls.stream(self._stub.GenerateStream, request, timeout)) as responses:
            async for response in responses:
                complete = response.WhichOneof("event") == "summary"
                event = replies.event(response)
                if event is not None:
                    yield event
        if not complete:
            raise _incomplete()

    async def tokenize(
        self, text: str, *, add_special_tokens: bool = True, timeout: float | None = None
    ) -> tuple[int, ...]:
        request = requests.tokenize_request(text, add_special_tokens)
        response: pb.TokenizeResponse = await self._calls.unary(self._stub.Tokenize, request, timeout)
        return tuple(response.token_ids)

    async def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = False, timeout: float | None = None
    ) -> str:
        request = requests.detokenize_request(token_ids, skip_special_tokens)
        response: pb.DetokenizeResponse = await self._calls.unary(self._stub.Detokenize, request, timeout)
        return response.text

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        request = pb.GetModelInfoRequest()
        return replies.model_info(await self._calls.unary(self._stub.GetModelInfo, request, timeout))

    async def wait_ready(self, timeout: float) -> None:
        """Returns when the server can serve; ClientError when it cannot within `timeout` seconds."""
        deadline = time.monotonic() + checked(timeout)
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                async with aclosing(self._watched(remaining)) as answers:
                    async for answer in answers:
                        if answer.status == _SERVING:
                            return
            except ClientError as error:
                if error.code not in _PASSING:
                    raise await self._calls.explained(error) from None
            await self._calls.pause(min(_WATCH_BACKOFF, max(0.0, deadline - time.monotonic())))
        why = await asyncio.to_thread(why_not_ready, self.address, self._connection)
        raise _not_ready(self.address, timeout, why)

    async def close(self) -> None:
        """Ends all calls. Idempotent."""
        await self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _watched(self, seconds: float) -> AsyncGenerator[Any, None]:
        return self._calls.stream(self._watch, health_pb2.HealthCheckRequest(), seconds, waits=True)


def _not_ready(address: str, timeout: float, why: str | None) -> ClientError:
    message = f"{address} is not ready after {timeout:g} s" + (f": {why}" if why else "")
    return ClientError("DEADLINE_EXCEEDED", message, "NOT_READY")


def _incomplete() -> ClientError:
    return ClientError("DATA_LOSS", "the stream ended without its summary")
