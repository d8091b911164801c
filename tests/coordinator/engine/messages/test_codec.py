"""Every message survives the way to bytes and back, none is forgotten, and other bytes are one error."""

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine import messages
from coordinator.engine.messages.codec import COMMANDS, MESSAGES, decode, encode
from coordinator.engine.messages.commands import Command
from coordinator.engine.messages.errors import MessageError
from coordinator.engine.messages.output import Output, RoutedExperts
from coordinator.engine.messages.stats import EngineStats
from tests.coordinator.engine.messages.made_messages import has_fields, parts, values

MESSAGE = st.one_of(*map(values, MESSAGES))


def defined() -> set[type]:
    """All that the modules of messages define."""
    found = set()
    for module in pkgutil.iter_modules(messages.__path__, f"{messages.__name__}."):
        loaded = importlib.import_module(module.name)
        found |= {each for each in vars(loaded).values() if getattr(each, "__module__", "") == module.name}
    return {each for each in found if isinstance(each, type)}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: str(kind.__name__))
def test_a_message_survives(kind: type) -> None:
    @given(values(kind))
    def check(message: object) -> None:
        decoded = decode(encode(message))
        assert type(decoded) is kind
        assert decoded == message

    check()


def test_no_message_is_forgotten() -> None:
    reached = {part for message in MESSAGES for part in parts(message)}
    assert {each.__name__ for each in defined() if has_fields(each) and each not in reached} == set()
    commands = {each for each in defined() if issubclass(each, Command) and each is not Command}
    assert commands == set(COMMANDS)


def test_messages_are_plain_data() -> None:
    for message in MESSAGES:
        values(message)
    with pytest.raises(TypeError, match="not plain data"):
        values(Callable[[int], bytes])


def test_arrays_keep_their_type_and_can_be_cut() -> None:
    ids_TLK = np.arange(24, dtype=np.uint16).reshape(4, 2, 3)[1:3]
    output = decode(encode(Output("r", routed_experts=(RoutedExperts(1, ids_TLK),))))
    assert isinstance(output, Output)
    (routed,) = output.routed_experts
    assert routed.ids_TLK.dtype == np.uint16
    np.testing.assert_array_equal(routed.ids_TLK, ids_TLK)
    assert routed != RoutedExperts(1, ids_TLK.astype(np.uint8))


@given(MESSAGE, st.data())
def test_a_message_that_is_cut_is_none(message: object, data: st.DataObject) -> None:
    whole = encode(message)
    with pytest.raises(MessageError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(MessageError):
        decode(whole + b"\x00")


@given(st.binary(max_size=60) | MESSAGE.map(encode), st.data())
def test_other_bytes_are_a_message_or_one_clear_error(data: bytes, changes: st.DataObject) -> None:
    mutable = bytearray(data)
    for _ in range(changes.draw(st.integers(1, 3)) if mutable else 0):
        mutable[changes.draw(st.integers(0, len(mutable) - 1))] = changes.draw(st.integers(0, 255))
    with suppress(MessageError):
        assert type(decode(mutable)) in MESSAGES


def bytes_of(name: str, body: object) -> bytes:
    return msgspec.msgpack.encode((name, body))


def with_array(array: object) -> bytes:
    routed = {"first_position": 0, "ids_TLK": array}
    return bytes_of("Output", {"request_id": "r", "routed_experts": [routed]})


def test_an_array_may_be_written_by_hand() -> None:
    output = decode(with_array(["u1", [2, 1, 1], b"ab"]))
    assert output == Output("r", routed_experts=(RoutedExperts(0, np.array([[[97]], [[98]]], np.uint8)),))


@pytest.mark.parametrize(
    "data",
    [
        bytes_of("Nothing", {}),
        bytes_of("EngineStats", {"num_running": "3"}),
        bytes_of("Request", {"request_id": "r"}),
        with_array(["f8", [1], b"12345678"]),
        with_array(["u1", [-1], b"123"]),
        with_array(["u2", [9, 9], b"12"]),
        with_array(["u1", [1 << 62, 1 << 62], b""]),
        with_array("none"),
        b"\x92" * 100_000,
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError, match="no message"):
        decode(data)


def test_a_request_that_checks_itself_does_so_again() -> None:
    sampling = {"temperature": -1.0}
    body = {"request_id": "r", "prompt_ids": [1], "sampling": sampling, "stop": {"max_tokens": 1}}
    with pytest.raises(MessageError, match="temperature"):
        decode(bytes_of("Request", body))


def test_a_number_that_has_no_place_in_a_message_is_refused() -> None:
    with pytest.raises(MessageError, match="Output cannot be told"):
        encode(Output("r", (1 << 64,)))


def test_only_messages_are_encoded() -> None:
    with pytest.raises(AssertionError, match="no message"):
        encode(RoutedExperts(0, np.zeros((1, 1, 1), np.uint8)))
    assert decode(encode(EngineStats(num_running=3))) == EngineStats(num_running=3)
