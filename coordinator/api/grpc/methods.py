"""Handlers of a service's methods, over messages that may not parse."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from coordinator.api.grpc.call import MalformedMessage
from coordinator.api.grpc.unknown_fields import UnknownFields, take_unknown

Behaviours = Mapping[str, Callable[..., Any]]


def method_handlers(
    service: ServiceDescriptor, behaviours: Behaviours, unknown: UnknownFields | None = None
) -> grpc.GenericRpcHandler:
    """The service as a server takes it. What it cannot take reaches the method as MalformedMessage."""
    handlers = {}
    unknown = unknown or UnknownFields()
    for method in service.methods:
        streams = method.server_streaming
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = make(
            behaviours[method.name],
            request_deserializer=_parser(GetMessageClass(method.input_type), method, unknown),
            response_serializer=_serialize,
        )
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _serialize(message: Message | bytes) -> bytes:
    """Of a message that its method may have serialised itself."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def _parser(
    kind: type[Message], method: MethodDescriptor, unknown: UnknownFields
) -> Callable[[bytes], Message | MalformedMessage]:
    """grpc would send the text of a parser's exception to the client."""
    service = method.containing_service.full_name

    def parse(data: bytes) -> Message | MalformedMessage:
        try:
            message = kind.FromString(data)
        except (DecodeError, UnicodeDecodeError):
            return MalformedMessage()
        names = take_unknown(message, data)
        if names:
            unknown.found(service, method.name, names)
            if unknown.is_strict:
                return MalformedMessage(f"has fields that this server does not know: {', '.join(names)}")
        return message

    return parse
