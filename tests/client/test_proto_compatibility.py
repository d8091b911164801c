"""A client of yesterday can talk to the server of today: what was published keeps its number, name and type.

The baseline is one line for each field, value and method. Lines may be added to it, with the test's help,
and never changed or taken away.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

from expertmesh.v1 import control_pb2, generation_pb2

BASELINE = Path(__file__).parents[1] / "data" / "protos" / "expertmesh.v1.txt"


def described() -> list[str]:
    """All that a client relies on."""
    return [line for module in (generation_pb2, control_pb2) for line in _file(module.DESCRIPTOR)]


def _file(descriptor: object) -> Iterator[str]:
    file = FileDescriptorProto()
    descriptor.CopyToProto(file)  # type: ignore[attr-defined]
    for message in file.message_type:
        yield from _message(message, file.package)
    for enum in file.enum_type:
        yield from _enum(enum, file.package)
    for service in file.service:
        yield from _service(service, file.package)


def _message(message: DescriptorProto, scope: str) -> Iterator[str]:
    name = f"{scope}.{message.name}"
    yield f"message {name}"
    for field in message.field:
        yield f"field {name} {field.number} {field.name} {_type(field, message)}"
    for inner in message.nested_type:
        yield from _message(inner, name)
    for enum in message.enum_type:
        yield from _enum(enum, name)


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.proto3_optional:
        return f"optional {kind}"
    if field.HasField("oneof_index"):
        return f"{kind} of {message.oneof_decl[field.oneof_index].name}"
    return kind


def _enum(enum: EnumDescriptorProto, scope: str) -> Iterator[str]:
    for value in enum.value:
        yield f"value {scope}.{enum.name} {value.number} {value.name}"


def _service(service: ServiceDescriptorProto, scope: str) -> Iterator[str]:
    for method in service.method:
        streams = "stream " if method.server_streaming else ""
        assert not method.client_streaming
        yield f"rpc {scope}.{service.name}.{method.name} {method.input_type} {streams}{method.output_type}"


def gone(baseline: list[str], now: list[str]) -> list[str]:
    return sorted(set(baseline) - set(now))


def test_nothing_that_was_published_has_changed() -> None:
    baseline = BASELINE.read_text(encoding="utf-8").splitlines()
    assert len(baseline) == len(set(baseline)) > 150
    assert gone(baseline, described()) == [], "clients of before rely on these"


def test_everything_that_is_published_is_in_the_baseline() -> None:
    baseline = BASELINE.read_text(encoding="utf-8").splitlines()
    assert gone(described(), baseline) == [], f"new? then add these lines to {BASELINE.name}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("field a.M 1 x uint32", "field a.M 2 x uint32"),
        ("field a.M 1 x uint32", "field a.M 1 x uint64"),
        ("field a.M 1 x uint32", "field a.M 1 y uint32"),
        ("field a.M 1 x uint32", "field a.M 1 x repeated uint32"),
        ("value a.E 1 X", "value a.E 2 X"),
        ("rpc a.S.M .a.I .a.O", "rpc a.S.M .a.I stream .a.O"),
    ],
)
def test_any_change_of_a_line_shows(old: str, new: str) -> None:
    assert gone([old, "message a.M"], [new, "message a.M", "message a.New"]) == [old]
