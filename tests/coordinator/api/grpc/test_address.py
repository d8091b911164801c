"""Addresses as people write them."""

import socket

import pytest

from coordinator.api.grpc.address import check_free, format_address, is_loopback, parse_address
from moe_model.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
        ("my-host.example:80", "my-host.example", 80),
    ],
)
def test_parses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "nonsense", "127.0.0.1", ":50051", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:99999", "h:-1"),
        *("::1:50051", "unix:/tmp/s", "http://h:1", "h:1:2", "h:1\n", "a b:1", "[::1]50051", "h:٣"),
    ],
)
def test_refuses_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT") as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_taken_port_is_named(host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{host}:{port}: already in use"):
            check_free(host, port)


@pytest.mark.parametrize(
    ("host", "why"), [("no.such.host.invalid", "unknown host"), ("192.0.2.1", "annot assign")]
)
def test_a_host_that_is_not_ours_is_named(host: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_free(host, 0)


def test_a_free_port_stays_free() -> None:
    check_free("127.0.0.1", 0)
