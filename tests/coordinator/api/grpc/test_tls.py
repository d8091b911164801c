"""TLS at the port, with real handshakes."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.api.grpc.port import GrpcPort
from coordinator.api.grpc.tls import server_credentials
from coordinator.api.security.tls import TlsFiles
from coordinator.api.shared.file_watch import FileWatch
from coordinator.config.security import TlsConfig
from tests.coordinator.api.certificates import DAY, Authority, write_private
from tests.coordinator.api.fakes import PATIENCE

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@asynccontextmanager
async def serving(config: TlsConfig) -> AsyncIterator[str]:
    """The address of a port that sees changed files at once."""
    files = TlsFiles(config, FileWatch(config.paths, interval=0))
    port = GrpcPort("127.0.0.1:0", {}, credentials=server_credentials(files))
    port.bind()
    await port.start()
    try:
        yield port.address
    finally:
        await port.close()


async def check(channel: grpc.aio.Channel) -> int:
    async with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        question = health_pb2.HealthCheckRequest(service="liveness")
        return int((await stub.Check(question, timeout=PATIENCE)).status)


def secure(address: str, authority: Authority, identity: TlsConfig | None = None) -> grpc.aio.Channel:
    key, cert = (None, None) if identity is None else (identity.key.read_bytes(), identity.cert.read_bytes())
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority.pem, key, cert))


async def refused(channel: grpc.aio.Channel) -> bool:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(channel)
    return caught.value.code() is grpc.StatusCode.UNAVAILABLE


def presented(address: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), PATIENCE) as plain,
        context.wrap_socket(plain) as encrypted,
    ):
        certificate = encrypted.getpeercert(binary_form=True)
    assert certificate is not None
    return ssl.DER_cert_to_PEM_cert(certificate).encode()


async def test_serves_who_trusts_it_and_no_other(tmp_path: Path, authority: Authority) -> None:
    async with serving(authority.write(tmp_path)) as address:
        assert await check(secure(address, authority)) == SERVING
        assert await refused(secure(address, Authority("other CA")))
        assert await refused(grpc.aio.insecure_channel(address))
        assert await check(secure(address, authority)) == SERVING


async def test_a_certificate_for_another_host_is_of_no_use(tmp_path: Path, authority: Authority) -> None:
    async with serving(authority.write(tmp_path)) as address:
        port = address.rpartition(":")[2]
        trusting = grpc.ssl_channel_credentials(authority.pem)
        options = [("grpc.ssl_target_name_override", "elsewhere.example")]
        assert await refused(grpc.aio.secure_channel(f"127.0.0.1:{port}", trusting, options))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_the_oldest_version_is_1_2(tmp_path: Path, authority: Authority) -> None:
    config = authority.write(tmp_path)
    async with serving(config) as address:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            assert await asyncio.to_thread(presented, address, version) == config.cert.read_bytes()
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await asyncio.to_thread(presented, address, version)


async def test_new_connections_get_the_new_certificate(tmp_path: Path, authority: Authority) -> None:
    config = authority.write(tmp_path)
    async with serving(config) as address, secure(address, authority) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = aiter(stub.Watch(health_pb2.HealthCheckRequest(service="liveness")))
        assert (await anext(watch)).status == SERVING
        before = await asyncio.to_thread(presented, address)
        authority.write(tmp_path)
        after = await asyncio.to_thread(presented, address)
        assert before != after == config.cert.read_bytes()
        # The connection of before goes on.
        await stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=PATIENCE)
        write_private(config.key, b"broken")
        assert await asyncio.to_thread(presented, address) == after
        assert await check(secure(address, authority)) == SERVING


async def test_clients_must_show_a_certificate_of_the_right_authority(
    tmp_path: Path, authority: Authority
) -> None:
    others = Authority("other CA")
    for name in ("server", "known", "stranger", "expired"):
        (tmp_path / name).mkdir()
    config = authority.write(tmp_path / "server", client_ca=authority.pem)
    known = authority.write(tmp_path / "known")
    stranger = others.write(tmp_path / "stranger")
    expired = authority.write(tmp_path / "expired", begins=-2 * DAY, ends=-DAY)
    async with serving(config) as address:
        assert await check(secure(address, authority, known)) == SERVING
        for identity in (None, stranger, expired):
            assert await refused(secure(address, authority, identity))
        assert config.client_ca is not None
        write_private(config.client_ca, others.pem)
        assert await check(secure(address, authority, stranger)) == SERVING
        assert await refused(secure(address, authority, known))
