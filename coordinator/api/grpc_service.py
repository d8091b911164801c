"""GenerationService on grpc.aio: validation in front of the engine, its outputs as messages."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from coordinator.api import tokenization
from coordinator.api.events import EventWriter, join
from coordinator.api.gate import Gate
from coordinator.api.grpc_call import Call, Context, MalformedMessage, rpc
from coordinator.api.served_model import ServedModel
from coordinator.api.validation import resolve
from protos.expertmesh.v1 import generation_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["GenerationService"]
# Larger messages are checked and tokenized off the event loop.
MAX_INLINE_BYTES = 16 << 10

M = TypeVar("M", bound=Message)
R = TypeVar("R")


class GenerationService:
    """One method per RPC. Everything a call holds is given back when it ends, however it ends."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def generate(self, message: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        async with (
            rpc("Generate", message, context, self._gate) as call,
            aclosing(self._events(message, call)) as events,
        ):
            return join([event async for event in events])

    async def generate_stream(self, message: pb.GenerateRequest, context: Context) -> None:
        # Written here and not yielded: a failing write ends this body at once, and with it the request.
        async with (
            rpc("GenerateStream", message, context, self._gate) as call,
            aclosing(self._events(message, call)) as events,
        ):
            async for event in events:
                await context.write(event)

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
                response = await _off_loop(message, function, message, backend.model)
                await call.accept()
                return response

    async def _events(
        self, message: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
        """The one source of both generating methods. Closing it aborts what still runs."""
        with self._gate.call() as backend, self._gate.claim(call.request_id):
            model = backend.model
            arrival_time = time.monotonic()
            generation = await _off_loop(message, resolve, message, model, call.request_id, arrival_time)
            await call.accept()
            writer = EventWriter(generation, model.tokenizer)
            call.facts["prompt_tokens"] = len(generation.request.prompt_ids)
            yield writer.prompt()
            try:
                async with aclosing(backend.engine.stream(generation.request)) as outputs:
                    async for output in outputs:
                        for event in writer.events(output):
                            yield event
                        if output.finish_reason is not None:
                            call.facts["finish"] = output.finish_reason
            finally:
                call.facts["tokens"] = writer.num_tokens
            assert writer.done, "the engine's stream ended without a last output"


def method_handlers(service: GenerationService) -> grpc.GenericRpcHandler:
    """The service as the server takes it. Bytes that do not parse reach the method as MalformedMessage."""
    behaviours: dict[str, Callable[..., Any]] = {
        "Generate": service.generate,
        "GenerateStream": service.generate_stream,
        "Tokenize": service.tokenize,
        "Detokenize": service.detokenize,
        "GetModelInfo": service.get_model_info,
    }
    handlers = {}
    for method in SERVICE.methods:
        streams = method.server_streaming
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = make(
            behaviours[method.name],
            request_deserializer=_parser(GetMessageClass(method.input_type)),
            response_serializer=_serialize,
        )
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _parser(kind: type[Message]) -> Callable[[bytes], Message | MalformedMessage]:
    """grpc would send the text of a parser's exception to the client."""

    def parse(data: bytes) -> Message | MalformedMessage:
        try:
            return kind.FromString(data)
        except (DecodeError, UnicodeDecodeError):
            return MalformedMessage()

    return parse


async def _off_loop(message: Message, function: Callable[..., R], *arguments: object) -> R:
    """Calls a function that takes as long as the message is large."""
    if message.ByteSize() <= MAX_INLINE_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)
