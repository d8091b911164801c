"""Handlers of a service's methods, over messages that may not parse."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from coordinator.api.grpc_call import MalformedMessage

Behaviours = Mapping[str, Callable[..., Any]]


def method_handlers(service: ServiceDescriptor, behaviours: Behaviours) -> grpc.GenericRpcHandler:
    """The service as a server takes it. Bytes that do not parse reach the method as MalformedMessage."""
    handlers = {}
    for method in service.methods:
        streams = method.server_streaming
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = make(
            behaviours[method.name],
            request_deserializer=_parser(GetMessageClass(method.input_type)),
            response_serializer=_serialize,
        )
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


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
