"""Clients that read too little: they take a request's first messages, or none, and never another one.

    python -m tests.scenarios.readers HOST:PORT

reads one endless stream, a line on stdout per message.
"""

import asyncio
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

# gRPC widens the window of a fast connection to megabytes: without, the server has to wait after 64 KiB.
NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))


def wordy(max_tokens: int, prompt: Sequence[int], prompt_logprobs: int | None = None) -> pb.GenerateRequest:
    """Several hundred bytes for every token of the output, and of the prompt where it is asked for."""
    message = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt))
    message.stopping.MergeFrom(pb.StoppingParams(max_tokens=max_tokens, ignore_eos=True))
    options = pb.ResponseOptions(logprobs=20, return_token_ids=True, prompt_logprobs=prompt_logprobs)
    message.response.MergeFrom(options)
    return message


class NeverReading:
    """Calls on narrow connections, each its own; leaving the block ends them."""

    def __init__(self, address: str, count: int) -> None:
        self._channels = [grpc.aio.insecure_channel(address, options=NARROW) for _ in range(count)]
        self._calls: list[Any] = []

    def send(self, message: pb.GenerateRequest) -> None:
        channel = self._channels[len(self._calls)]
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        self._calls.append(stub.GenerateStream(message, timeout=600))

    async def all_begun(self) -> None:
        await asyncio.gather(*(call.initial_metadata() for call in self._calls))

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*(channel.close() for channel in self._channels))


def main(address: str) -> None:
    endless = wordy(1 << 20, [5, 6, 7])
    endless.stopping.context_overflow = pb.CONTEXT_OVERFLOW_SLIDE
    with grpc.insecure_channel(address, options=NARROW) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        for event in stub.GenerateStream(endless):
            print(event.WhichOneof("event"), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
