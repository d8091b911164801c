"""Mutual TLS on every port: a certificate of the right authority gets in, and nothing else does."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.config.security import SecurityConfig, TlsConfig
from coordinator.server.fronts import Fronts
from tests.coordinator.api.certificates import Authority
from tests.coordinator.api.fakes import PATIENCE
from tests.coordinator.fronts_fakes import make_fronts, opening


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def fronts(tmp_path: Path, authority: Authority) -> AsyncIterator[Fronts]:
    tls = authority.write(folder(tmp_path, "server"), client_ca=authority.pem)
    fronts = make_fronts(security=SecurityConfig(tls=tls))
    async with opening(fronts):
        yield fronts


def folder(path: Path, name: str) -> Path:
    (path / name).mkdir()
    return path / name


async def grpc_lets_in(address: str, authority: Authority, identity: TlsConfig | None) -> bool:
    key, cert = (None, None) if identity is None else (identity.key.read_bytes(), identity.cert.read_bytes())
    credentials = grpc.ssl_channel_credentials(authority.pem, key, cert)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        return await _is_alive(channel)


async def _is_alive(channel: grpc.aio.Channel) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    call = stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=PATIENCE)
    code = await call.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return bool(code is grpc.StatusCode.OK)


async def http_lets_in(address: str, authority: Authority, identity: TlsConfig | None) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode())
    if identity is not None:
        context.load_cert_chain(identity.cert, identity.key)
    async with httpx.AsyncClient(verify=context, timeout=PATIENCE) as client:
        try:
            return (await client.get(f"https://{address}/livez")).status_code == 200
        except httpx.TransportError:
            return False


async def test_only_known_certificates_get_in(fronts: Fronts, authority: Authority, tmp_path: Path) -> None:
    known = authority.write(folder(tmp_path, "known"))
    stranger = Authority("other CA").write(folder(tmp_path, "stranger"))
    for port in (fronts.grpc, fronts.control):
        assert port is not None
        found = [await grpc_lets_in(port.address, authority, each) for each in (known, None, stranger, known)]
        assert found == [True, False, False, True]
    for web in (fronts.http, fronts.metrics):
        assert web is not None
        found = [await http_lets_in(web.address, authority, each) for each in (known, None, stranger, known)]
        assert found == [True, False, False, True]


async def test_nothing_is_said_in_the_clear(fronts: Fronts) -> None:
    for port in (fronts.grpc, fronts.control):
        assert port is not None
        async with grpc.aio.insecure_channel(port.address) as channel:
            assert not await _is_alive(channel)
    async with httpx.AsyncClient(verify=False, timeout=PATIENCE) as client:
        for web in (fronts.http, fronts.metrics):
            assert web is not None
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://{web.address}/livez")


async def test_the_port_of_health_alone_asks_for_nothing_and_has_nothing_else(fronts: Fronts) -> None:
    assert fronts.health is not None
    async with grpc.aio.insecure_channel(fronts.health.address) as channel:
        assert await _is_alive(channel)
        for method in ("expertmesh.v1.GenerationService/Generate", "expertmesh.v1.ControlService/GetLoad"):
            ask: Any = channel.unary_unary(f"/{method}")
            call = ask(b"", timeout=PATIENCE)
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
