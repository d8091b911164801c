"""What joiners and heads say to each other, as JSON over HTTPS. Light; all of it is checked when it is read.

    GET  /v1/ca       the CA's certificate: without a secret, as its hash is what the joiner knows
    POST /v1/check    EnrolRequest, answered with Checked: may this machine join?
    POST /v1/enrol    EnrolRequest, answered with Enrolled: it has joined
    POST /v1/reach    ReachRequest: can the head connect to these ports of whom asks? ReachReply
    GET  /v1/bytes    so many bytes, to measure the link with

All but the first want the secret of the join token, as a bearer's.
"""

import ipaddress
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from expert_workers.machines.ports import NodePorts, PortRange
from expert_workers.machines.versions import Versions
from moe_model.files import strict_json

CA_PATH, CHECK_PATH, ENROL_PATH = "/v1/ca", "/v1/check", "/v1/enrol"
REACH_PATH, BYTES_PATH = "/v1/reach", "/v1/bytes"
# Of a request's body, and of an answer but for `BYTES_PATH`.
MAX_BODY = 32 << 10
# What is sent to measure a link: less than a second of 100 Mbit/s.
LINK_BYTES = 8 << 20
# Clocks that differ by more break what certificates and logs say.
MAX_CLOCK_DIFFERENCE = 30.0
_MAX_TEXT, _MAX_VERSION = 8 << 10, 64


class MessageError(ValueError):
    """A message that is none; its text is one line."""


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """`time` is the joiner's clock, in seconds since 1970; `request`, a request for a certificate in PEM, is
    empty where the joiner has one."""

    versions: Versions
    time: float
    address: str
    request: str

    @classmethod
    def parse(cls, data: bytes) -> "EnrolRequest":
        """Raises MessageError."""
        value = _object(data)
        versions = value.get("versions")
        if not isinstance(versions, dict) or set(versions) != set(Versions.__slots__):
            raise MessageError("versions: not understood")
        texts = {name: _text(versions, name, _MAX_VERSION) for name in versions}
        time, address = value.get("time"), _text(value, "address", 64)
        if not isinstance(time, int | float) or isinstance(time, bool):
            raise MessageError("time: is not a number")
        return cls(Versions(**texts), float(time), _address(address), _text(value, "request", _MAX_TEXT))


@dataclass(frozen=True, slots=True)
class Checked:
    """Where Ray's head is, and the ports of its machine; `run` is another with each start of the head."""

    head: str
    head_ports: NodePorts
    run: str

    @classmethod
    def parse(cls, data: bytes) -> "Checked":
        """Raises MessageError."""
        value = _object(data)
        return cls(_text(value, "head", 64), _ports(value.get("head_ports")), _text(value, "run", 64))


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a joiner gets: all that it needs to be a node. `certificate` is empty where it brings its own."""

    head: str
    head_ports: NodePorts
    has_tls: bool
    certificate: str
    ray_token: str = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> "Enrolled":
        """Raises MessageError."""
        value = _object(data)
        return cls(
            _text(value, "head", 64),
            _ports(value.get("head_ports")),
            value.get("has_tls") is True,
            _text(value, "certificate", _MAX_TEXT),
            _text(value, "ray_token", 256),
        )


@dataclass(frozen=True, slots=True)
class ReachRequest:
    """Ports of the asking machine; the head tries a sample of them."""

    ports: NodePorts

    @classmethod
    def parse(cls, data: bytes) -> "ReachRequest":
        """Raises MessageError."""
        return cls(_ports(_object(data).get("ports")))


@dataclass(frozen=True, slots=True)
class ReachReply:
    """Why each port that the head cannot connect to is out of reach."""

    unreachable: dict[str, str]

    @classmethod
    def parse(cls, data: bytes) -> "ReachReply":
        """Raises MessageError."""
        found = _object(data).get("unreachable")
        if not isinstance(found, dict):
            raise MessageError("unreachable: is not an object")
        return cls({port: _text(found, port, 200) for port in found})


def encode(message: EnrolRequest | Checked | Enrolled | ReachRequest | ReachReply) -> bytes:
    return json.dumps(asdict(message)).encode()


def refusal(data: bytes) -> str:
    """What a head that refuses says; empty where that cannot be read."""
    try:
        return _text(_object(data), "error", 1000)
    except MessageError:
        return ""


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = strict_json.loads(data)
    except ValueError as error:
        raise MessageError(f"is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise MessageError("is no JSON object")
    return value


def _text(value: dict[str, Any], name: str, most: int) -> str:
    text = value.get(name)
    if not isinstance(text, str) or len(text) > most:
        raise MessageError(f"{name[:40]}: is not a text of at most {most} characters")
    return text


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise MessageError("address: is no IPv4 address") from None


def _ports(value: Any) -> NodePorts:
    try:
        made = NodePorts(value["first"], _range(value["workers"]), _range(value["data"]))
        is_right = all(1024 <= each.first <= each.last <= 65535 for each in made.ranges)
    except (TypeError, KeyError):
        is_right = False
    if not is_right:
        raise MessageError("ports: are not ranges in [1024, 65535]")
    return made


def _range(value: Any) -> PortRange:
    first, last = value["first"], value["last"]
    if type(first) is not int or type(last) is not int:
        raise TypeError
    return PortRange(first, last)
