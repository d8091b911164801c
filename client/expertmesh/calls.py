"""Calls over one channel, blocking and for asyncio: within a timeout each, and with ClientError for errors.

A call that a server could not take is sent again as retries.py has it.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Any

import grpc
from google.protobuf.message import Message

from expertmesh import replies
from expertmesh.connection import Connection
from expertmesh.diagnosis import explained, may_explain
from expertmesh.errors import ClientError
from expertmesh.retries import Attempts, pushback

_DETAILS_KEY = "grpc-status-details-bin"


class Calls:
    """For threads. `timeout` is in seconds, for a call that gives none."""

    def __init__(self, address: str, timeout: float, connection: Connection | None) -> None:
        """Raises ConfigError for an address or a file that cannot be used, ClientError for the timeout."""
        self.address = address
        self._timeout = checked(timeout)
        self._connection = connection or Connection()
        self.channel = self._connection.open(address)
        self._closed = threading.Event()

    def unary(
        self, method: Any, request: Message, timeout: float | None = None, *, retries: bool = True
    ) -> Any:
        attempts = self._attempts(timeout, retries=retries)
        while True:
            try:
                return self._send(method, request, attempts)
            except grpc.RpcError as error:
                failed, heard = client_error(error), _was_heard(error)
            self._pause(attempts, failed, heard=heard)

    def stream(
        self, method: Any, request: Message, timeout: float | None = None, *, waits: bool = False
    ) -> Generator[Any, None, None]:
        """The responses. Closing it early cancels the call. `waits`: sent once, as soon as it can be."""
        attempts = self._attempts(timeout, retries=not waits)
        while True:
            call, heard = self._send(method, request, attempts, wait_for_ready=waits), waits
            try:
                for response in call:
                    heard = True
                    yield response
                return
            except grpc.RpcError as error:
                failed = client_error(error)
            finally:
                call.cancel()
            self._pause(attempts, failed, heard=heard)

    def pause(self, seconds: float) -> None:
        """Raises ClientError when the client is closed meanwhile."""
        if self._closed.wait(seconds):
            raise _closed()

    def explained(self, failed: ClientError) -> ClientError:
        return explained(failed, self.address, self._connection)

    def close(self) -> None:
        """Ends all calls, of other threads too. Idempotent."""
        self._closed.set()
        self.channel.close()

    def _attempts(self, timeout: float | None, *, retries: bool) -> Attempts:
        seconds = self._timeout if timeout is None else checked(timeout)
        return Attempts(seconds, retries=retries and self._connection.retries)

    def _send(self, method: Any, request: Message, attempts: Attempts, **how: bool) -> Any:
        try:
            return method(request, timeout=attempts.remaining, metadata=self._connection.metadata, **how)
        except ValueError:
            if self._closed.is_set():
                raise _closed() from None
            raise

    def _pause(self, attempts: Attempts, failed: ClientError, *, heard: bool) -> None:
        """Until the next attempt. Raises `failed` when there is none."""
        seconds = attempts.pause(failed, heard=heard)
        if seconds is None:
            raise (failed if heard else self.explained(failed)) from None
        self.pause(seconds)


class AsyncCalls:
    """For one event loop. `timeout` is in seconds, for a call that gives none."""

    def __init__(self, address: str, timeout: float, connection: Connection | None) -> None:
        """Raises ConfigError for an address or a file that cannot be used, ClientError for the timeout."""
        self.address = address
        self._timeout = checked(timeout)
        self._connection = connection or Connection()
        self.channel = self._connection.open_async(address)
        self._closed = asyncio.Event()

    async def unary(self, method: Any, request: Message, timeout: float | None = None) -> Any:
        attempts = self._attempts(timeout, retries=True)
        while True:
            try:
                return await self._send(method, request, attempts)
            except grpc.RpcError as error:
                failed, heard = client_error(error), _was_heard(error)
            except asyncio.CancelledError:
                self._raise_if_closed()
                raise
            await self._pause(attempts, failed, heard=heard)

    async def stream(
        self, method: Any, request: Message, timeout: float | None = None, *, waits: bool = False
    ) -> AsyncGenerator[Any, None]:
        """The responses. Closing it early cancels the call. `waits`: sent once, as soon as it can be."""
        attempts = self._attempts(timeout, retries=not waits)
        while True:
            call, heard = self._send(method, request, attempts, wait_for_ready=waits), waits
            try:
                async for response in call:
                    heard = True
                    yield response
                return
            except grpc.RpcError as error:
                failed = client_error(error)
            except asyncio.CancelledError:
                self._raise_if_closed()
                raise
            finally:
                call.cancel()
            await self._pause(attempts, failed, heard=heard)

    async def pause(self, seconds: float) -> None:
        """Raises ClientError when the client is closed meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return
        raise _closed()

    async def explained(self, failed: ClientError) -> ClientError:
        if not may_explain(failed):
            return failed
        return await asyncio.to_thread(explained, failed, self.address, self._connection)

    async def close(self) -> None:
        """Ends all calls. Idempotent."""
        self._closed.set()
        await self.channel.close()

    def _attempts(self, timeout: float | None, *, retries: bool) -> Attempts:
        seconds = self._timeout if timeout is None else checked(timeout)
        return Attempts(seconds, retries=retries and self._connection.retries)

    def _send(self, method: Any, request: Message, attempts: Attempts, **how: bool) -> Any:
        if self._closed.is_set():
            raise _closed()
        return method(request, timeout=attempts.remaining, metadata=self._connection.metadata, **how)

    def _raise_if_closed(self) -> None:
        """A channel that closes cancels its calls, which would look as if the task had been cancelled."""
        task = asyncio.current_task()
        if self._closed.is_set() and not (task is not None and task.cancelling()):
            raise _closed() from None

    async def _pause(self, attempts: Attempts, failed: ClientError, *, heard: bool) -> None:
        """Until the next attempt. Raises `failed` when there is none."""
        seconds = attempts.pause(failed, heard=heard)
        if seconds is None:
            raise (failed if heard else await self.explained(failed)) from None
        await self.pause(seconds)


def checked(timeout: float) -> float:
    """grpc takes 0 for no deadline at all."""
    if not 0 < timeout < float("inf"):
        raise ClientError("INVALID_ARGUMENT", f"timeout: {timeout} is not a number of seconds > 0")
    return timeout


def client_error(error: Any) -> ClientError:
    """From grpc's own error, which both flavours raise as an RpcError that is also a Call."""
    trailing = dict(error.trailing_metadata() or ())
    found = replies.error(error.code().name, error.details() or "", trailing.get(_DETAILS_KEY))
    asked = pushback(trailing)
    if asked is not None:
        found.retry_after = asked
    return found


def _was_heard(error: Any) -> bool:
    """A server answers with metadata once it has taken a call."""
    return bool(error.initial_metadata())


def _closed() -> ClientError:
    return ClientError("CANCELLED", "the client is closed")
