"""Field numbers that no message has: nothing of them is dropped in silence."""

import logging
from typing import Any

import grpc
import pytest

from coordinator.api.grpc.unknown_fields import MAX_NAMED_BYTES, MAX_NAMES, UnknownFields, take_unknown
from expertmesh.v1 import control_pb2
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.fakes import PATIENCE, failure_of
from tests.coordinator.fronts_fakes import World, make_fronts, open_fronts, opening

# Field 1023 as a varint, and field 77: numbers that no message of ours has.
ODD, OTHER = b"\xf8\x3f\x01", b"\xe8\x04\x01"


def nested(number: int, inner: bytes) -> bytes:
    """A message field of a number below 16."""
    return bytes([number << 3 | 2, len(inner)]) + inner


def number_of(name: str) -> int:
    return int(pb.GenerateRequest.DESCRIPTOR.fields_by_name[name].number)


def taken(data: bytes) -> tuple[str, ...]:
    return take_unknown(pb.GenerateRequest.FromString(data), data)


def test_none_is_found_where_there_is_none() -> None:
    request = pb.GenerateRequest(text="x")
    request.sampling.logit_bias[5] = 1.0
    request.stopping.stop_sequences.append("y")
    data = request.SerializeToString()
    found = pb.GenerateRequest.FromString(data)
    assert take_unknown(found, data) == ()
    assert found == request


def test_they_are_named_by_number_wherever_they_are() -> None:
    chat = nested(number_of("chat"), nested(1, OTHER) + nested(1, OTHER))
    found = taken(ODD + nested(number_of("sampling"), ODD + OTHER) + chat)
    assert found[0] == "1023"
    assert set(found) == {"1023", "sampling.1023", "sampling.77", "chat.messages.77"}


def test_they_are_gone_from_the_message() -> None:
    data = pb.GenerateRequest(text="x").SerializeToString() + ODD
    message = pb.GenerateRequest.FromString(data)
    assert take_unknown(message, data) == ("1023",)
    assert message.SerializeToString() == pb.GenerateRequest(text="x").SerializeToString()


def test_a_hostile_number_of_them_is_only_measured() -> None:
    assert taken(ODD * MAX_NAMED_BYTES) == (f"of {len(ODD) * MAX_NAMED_BYTES} bytes",)
    numbers = b"".join(bytes([0x80 | (n << 3 & 0x7F), n >> 4]) + b"\1" for n in range(100, 200))
    assert len(taken(numbers)) == MAX_NAMES
    # Behind more messages than are looked at.
    many = b"".join([nested(1, b"")] * 5000) + nested(1, OTHER)
    chat = bytes([number_of("chat") << 3 | 2]) + _varint(len(many)) + many
    assert taken(chat) == ("of 3 bytes",)


def _varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def test_a_line_a_second_at_most(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("coordinator.api.grpc.unknown_fields.time.monotonic", lambda: now[0])
    counted: list[tuple[str, str]] = []
    unknown = UnknownFields(lambda service, method: counted.append((service, method)))
    with caplog.at_level(logging.WARNING):
        for at in (100.0, 100.5, 100.9, 101.0):
            now[0] = at
            unknown.found("s", "Generate", ("1023",))
    assert [record.getMessage() for record in caplog.records] == [
        "Generate: unknown fields 1023",
        "Generate: unknown fields 1023 (2 more such requests)",
    ]
    assert counted == [("s", "Generate")] * 4


def _method(channel: grpc.aio.Channel, name: str, *, streams: bool = False) -> Any:
    make = channel.unary_stream if streams else channel.unary_unary
    return make(f"/expertmesh.v1.{name}")


async def _call(address: str, name: str, data: bytes, *, streams: bool = False) -> Any:
    async with grpc.aio.insecure_channel(address) as channel:
        call = _method(channel, name, streams=streams)(data, timeout=PATIENCE)
        return [answer async for answer in call] if streams else await call


REQUEST = pb.GenerateRequest(text="hello", request_id="a").SerializeToString() + ODD
TOPOLOGY = control_pb2.GetTopologyRequest().SerializeToString() + ODD


async def test_they_change_nothing_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    fronts = make_fronts()
    with caplog.at_level(logging.WARNING):
        async with opening(fronts) as engine:
            await open_fronts(fronts, engine, World())
            assert await _call(fronts.grpc.address, "GenerationService/GenerateStream", REQUEST, streams=True)
            await _call(str(getattr(fronts.control, "address", "")), "ControlService/GetTopology", TOPOLOGY)
    text = fronts._metrics.render()[0].decode()
    for service, method in (("Generation", "GenerateStream"), ("Control", "GetTopology")):
        labels = f'grpc_method="{method}",grpc_service="expertmesh.v1.{service}Service"'
        assert f"expertmesh_grpc_unknown_fields_total{{{labels}}} 1.0" in text
    assert "GenerateStream: unknown fields 1023" in caplog.text


async def test_strict_fields_refuses_them_by_number() -> None:
    fronts = make_fronts(strict_fields=True)
    async with opening(fronts) as engine:
        await open_fronts(fronts, engine, World())
        for port, method, data in (
            ("grpc", "GenerationService/Generate", REQUEST),
            ("control", "ControlService/GetTopology", TOPOLOGY),
        ):
            async with grpc.aio.insecure_channel(getattr(fronts, port).address) as channel:
                failed = await failure_of(_method(channel, method)(data, timeout=PATIENCE))
            assert (failed.code, failed.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
            assert "does not know: 1023" in failed.message
