"""Ports are taken before anything begins, are shared by fronts of one server, and by nothing else."""

import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from coordinator.api.grpc.port import GrpcPort
from coordinator.api.http.server import HttpServer
from coordinator.config.service import Addresses
from coordinator.server.launcher.ports import held_ports
from moe_model.errors import ConfigError

ANY = Addresses("127.0.0.1:0", http="127.0.0.1:0", control=None)


@contextmanager
def front(address: str) -> Iterator[socket.socket]:
    host, _, port = address.rpartition(":")
    with socket.socket() as listener:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind((host, int(port)))
        listener.listen()
        yield listener


async def _no_app(*_: object) -> None:
    """Is never asked."""


def test_each_port_has_a_number_and_the_rest_stays() -> None:
    with held_ports(ANY) as held:
        assert held.control is None
        assert held.metrics is None
        ports = [int(address.rpartition(":")[2]) for address in held.all().values()]
        assert len({*ports}) == 2
        assert min(ports) > 0


@pytest.mark.parametrize("num_fronts", [0, 1, 2])
def test_a_second_server_is_refused_also_while_no_front_listens(num_fronts: int) -> None:
    with held_ports(ANY) as held, ExitStack() as stack:
        for _ in range(num_fronts):
            stack.enter_context(front(held.grpc))
        with pytest.raises(ConfigError, match=f"grpc address {held.grpc}: already in use"), held_ports(held):
            pytest.fail("two servers at one port")


async def test_a_server_of_one_process_is_refused_too() -> None:
    with held_ports(ANY) as held:
        with pytest.raises(ConfigError, match="already in use"):
            GrpcPort(held.grpc, {}).bind()
        assert held.http is not None
        with pytest.raises(ConfigError, match="already in use"):
            HttpServer(held.http, _no_app).bind()


async def test_fronts_can_listen_where_it_is_held() -> None:
    with held_ports(ANY) as held:
        assert held.http is not None
        for _ in range(2):
            assert GrpcPort(held.grpc, {}, is_held=True).bind() == held.grpc
        servers = [HttpServer(held.http, _no_app, is_held=True) for _ in range(2)]
        try:
            assert [server.bind() for server in servers] == [held.http] * 2
        finally:
            for server in servers:
                await server.close()


def test_no_connection_waits_at_what_is_held_and_each_front_has_some() -> None:
    with held_ports(ANY) as held, front(held.grpc) as one, front(held.grpc) as other:
        heard = {one: 0, other: 0}
        with selectors.DefaultSelector() as selector:
            for listener in heard:
                selector.register(listener, selectors.EVENT_READ)
            host, _, port = held.grpc.rpartition(":")
            for _ in range(64):
                with socket.create_connection((host, int(port)), timeout=5):
                    ((key, _),) = selector.select(5)
                    assert isinstance(key.fileobj, socket.socket)
                    key.fileobj.accept()[0].close()
                    heard[key.fileobj] += 1
        assert sum(heard.values()) == 64
        assert min(heard.values()) > 0


def test_a_port_is_free_at_once_after_the_server_and_its_connections() -> None:
    """Those that the server has closed linger for a minute."""
    with held_ports(ANY) as held, front(held.grpc) as listener:
        host, _, port = held.grpc.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as client:
            listener.accept()[0].close()
            assert client.recv(1) == b""
    with held_ports(held) as again:
        assert again == held


def test_a_host_with_two_addresses_is_held_at_both() -> None:
    found = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with held_ports(Addresses("localhost:0", http=None, control=None)) as held:
        port = int(held.grpc.rpartition(":")[2])
        for host in found:
            family = socket.AF_INET6 if ":" in str(host) else socket.AF_INET
            with socket.socket(family) as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError, match="in use"):  # noqa: PT012 - either refuses
                    other.bind((host, port))
                    other.listen()
