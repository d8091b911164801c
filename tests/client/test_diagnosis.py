"""What a client says of a wrong port, address, file or TLS: one line that names it and the next step."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.config.security import SecurityConfig
from coordinator.server.fronts import Fronts
from expertmesh import AsyncClient, Client, ClientError, Connection, ControlClient, cli
from expertmesh import diagnosis as client_diagnosis
from expertmesh.address import check_address, is_local
from expertmesh.commands import top
from moe_model.errors import ConfigError
from tests.client.odd_servers import odd_server
from tests.coordinator.api.certificates import Authority, write_private
from tests.coordinator.api.fakes import PATIENCE
from tests.coordinator.fronts_fakes import make_fronts, opening

AUTHORITY, OTHER = Authority(), Authority("other CA")


@pytest.fixture(autouse=True)
def _no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer to see what it is told."""
    monkeypatch.setattr(client_diagnosis, "SECONDS", PATIENCE)


@pytest.fixture
async def plain() -> AsyncIterator[Fronts]:
    fronts = make_fronts()
    async with opening(fronts):
        yield fronts


@pytest.fixture
async def encrypted(tmp_path: Path) -> AsyncIterator[Fronts]:
    fronts = make_fronts(security=SecurityConfig(tls=AUTHORITY.write(folder(tmp_path, "server"))))
    async with opening(fronts):
        yield fronts


@pytest.fixture
async def mutual(tmp_path: Path) -> AsyncIterator[Fronts]:
    tls = AUTHORITY.write(folder(tmp_path, "server"), client_ca=AUTHORITY.pem)
    fronts = make_fronts(security=SecurityConfig(tls=tls))
    async with opening(fronts):
        yield fronts


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    return write_private(tmp_path / "ca.pem", AUTHORITY.pem)


@pytest.fixture
def other_ca(tmp_path: Path) -> Path:
    return write_private(tmp_path / "other.pem", OTHER.pem)


def folder(path: Path, name: str) -> Path:
    (path / name).mkdir()
    return path / name


def address_of(fronts: Fronts, name: str) -> str:
    return str(getattr(fronts, name).address)


async def words(address: str, connection: Connection | None = None, *, control: bool = False) -> str:
    """What both clients say; the same."""
    connection = replace(connection or Connection(), retries=False)
    if control:
        return await asyncio.to_thread(_words, lambda: ControlClient(address, connection=connection).load())
    client = Client(address, timeout=PATIENCE, connection=connection)
    said = await asyncio.to_thread(_words, lambda: client.generate("x"))
    async with AsyncClient(address, timeout=PATIENCE, connection=connection) as other:
        with pytest.raises(ClientError) as caught:
            _ = [event async for event in other.stream("x")]
    assert str(caught.value) == said
    client.close()
    return said


def _words(call: Callable[[], object]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("port", "control", "said"),
    [
        ("control", False, "is the server's control port, and this needs its gRPC port"),
        ("grpc", True, "is the server's gRPC port, and this needs its control port"),
        ("http", False, "is an HTTP port, and this needs a gRPC port"),
        ("http", True, "is an HTTP port, and this needs a gRPC port"),
        ("metrics", False, "is an HTTP port, and this needs a gRPC port"),
        ("metrics", True, "is an HTTP port, and this needs a gRPC port"),
    ],
)
async def test_a_wrong_port(plain: Fronts, port: str, control: bool, said: str) -> None:
    address = address_of(plain, port)
    found = await words(address, control=control)
    assert f"{address} {said}" in found
    assert "the server's READY line says" in found


async def test_the_right_port_speaks_for_itself(plain: Fronts) -> None:
    assert "the server is starting" in await words(address_of(plain, "grpc"))
    assert "the server is starting" in await words(address_of(plain, "control"), control=True)


@pytest.mark.parametrize("port", ["grpc", "control", "http", "metrics"])
async def test_tls_is_missing(encrypted: Fronts, port: str) -> None:
    found = await words(address_of(encrypted, port), control=port == "control")
    assert f"{address_of(encrypted, port)} speaks TLS: give its CA (--tls-ca FILE), or --tls" in found


async def test_a_client_certificate_is_missing_and_tls_as_well(mutual: Fronts) -> None:
    assert "speaks TLS: give its CA" in await words(address_of(mutual, "grpc"))


async def test_tls_where_there_is_none(plain: Fronts, ca: Path) -> None:
    for name in ("grpc", "control"):
        found = await words(address_of(plain, name), Connection(ca=ca), control=name == "control")
        assert f"{address_of(plain, name)} does not speak TLS: leave out --tls and --tls-ca" in found
    found = await words(address_of(plain, "http"), Connection(ca=ca))
    assert "is an HTTP port without TLS, and this needs a gRPC port" in found


async def test_an_https_port(encrypted: Fronts, ca: Path) -> None:
    found = await words(address_of(encrypted, "http"), Connection(ca=ca))
    assert "is an HTTPS port, and this needs a gRPC port" in found


async def test_another_ca(encrypted: Fronts, other_ca: Path) -> None:
    address = address_of(encrypted, "grpc")
    found = await words(address, Connection(ca=other_ca))
    assert f"the certificate of {address} is not signed by the CA of {other_ca}" in found
    found = await words(address, Connection(tls=True))
    assert f"the certificate of {address} is not signed by any CA of this system" in found
    assert "--tls-ca FILE" in found


async def test_another_name(tmp_path: Path, ca: Path) -> None:
    tls = AUTHORITY.write(folder(tmp_path, "server"))
    certificate, key = AUTHORITY.sign("elsewhere.example", addresses=())
    write_private(tls.key, key)
    write_private(tls.cert, certificate)
    fronts = make_fronts(security=SecurityConfig(tls=tls))
    async with opening(fronts):
        address = address_of(fronts, "grpc")
        found = await words(address, Connection(ca=ca))
    assert f"the certificate of {address} is not one for 127.0.0.1: use a name that it has" in found


async def test_a_client_certificate_is_wanted(mutual: Fronts, ca: Path) -> None:
    found = await words(address_of(mutual, "grpc"), Connection(ca=ca))
    assert "wants a client's certificate: give --tls-cert FILE and --tls-key FILE" in found


async def test_a_client_certificate_of_a_stranger(mutual: Fronts, ca: Path, tmp_path: Path) -> None:
    theirs = OTHER.write(folder(tmp_path, "theirs"))
    found = await words(address_of(mutual, "grpc"), Connection(False, ca, theirs.cert, theirs.key))
    assert f"does not accept the certificate of {theirs.cert}" in found


def write_text(path: Path) -> Path:
    path.write_text("no certificate")
    return path


def test_files_are_refused_by_name(ca: Path, tmp_path: Path) -> None:
    own, text = AUTHORITY.write(folder(tmp_path, "own")), write_text(tmp_path / "text.pem")
    other_key = OTHER.write(folder(tmp_path, "other")).key
    missing = tmp_path / "missing.pem"
    cases: dict[Connection, str] = {
        Connection(ca=text): f"TLS CA {text}: holds no certificate in PEM",
        Connection(ca=missing): f"TLS CA {missing}: No such file or directory",
        Connection(ca=tmp_path): f"TLS CA {tmp_path}: Is a directory",
        Connection(False, ca, text, own.key): f"TLS certificate {text}: holds no certificate in PEM",
        Connection(False, ca, own.cert, text): f"TLS key {text}: is not a usable private key in PEM",
        Connection(False, ca, own.cert, missing): f"TLS key {missing}: No such file or directory",
        Connection(False, ca, own.cert, other_key): (
            f"TLS key {other_key}: does not belong to the certificate {own.cert}"
        ),
    }
    for connection, said in cases.items():
        for kind in (Client, ControlClient):
            with pytest.raises(ConfigError) as caught:
                kind("127.0.0.1:1", connection=connection)
            assert said in str(caught.value)


async def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for control in (False, True):
            found = await words(address, control=control)
            assert f"nothing listens at {address}: is the server running, and is this its port?" in found


async def test_an_unknown_host() -> None:
    for control in (False, True):
        assert "no-such-host.invalid:50051: unknown host" in await words(
            "no-such-host.invalid:50051", control=control
        )


@pytest.mark.parametrize("host", ["a" * 64, "b..example", ".example"])
async def test_a_name_that_can_be_no_host(host: str) -> None:
    assert f"{host}:50051: unknown host" in await words(f"{host}:50051")


def test_a_look_that_fails_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error itself is what is told, and it does not wait."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def look() -> str:
        raise ValueError("something odd")

    assert client_diagnosis.within(PATIENCE, look) is None
    assert not told


async def test_something_else_listens() -> None:
    with odd_server("nonsense") as address:
        assert f"{address} does not speak gRPC" in await words(address)


async def test_not_ready_says_why(encrypted: Fronts) -> None:
    address = address_of(encrypted, "grpc")
    with Client(address) as client:
        said = await asyncio.to_thread(_words, lambda: client.wait_ready(0.3))
    assert f"{address} is not ready after 0.3 s: {address} speaks TLS" in said
    async with AsyncClient(address) as other:
        with pytest.raises(ClientError, match=r"is not ready after 0\.3 s: .* speaks TLS"):
            await other.wait_ready(0.3)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("localhost", "'localhost': it has no port; as in localhost:50051"),
        ("", "'': expected HOST:PORT"),
        ("::1", "'::1': an IPv6 address needs brackets and a port, as in [::1]:50051"),
        ("::1:50051", "an IPv6 address needs brackets"),
        ("http://127.0.0.1:50051", "leave out http://, it is HOST:PORT"),
        ("grpc://127.0.0.1:50051", "leave out grpc://"),
        ("127.0.0.1:", "expected HOST:PORT"),
        ("127.0.0.1:0", "its port is not in [1, 65535]"),
        ("127.0.0.1:65536", "its port is not in [1, 65535]"),
        ("127.0.0.1:grpc", "expected HOST:PORT"),
        ("a b:1", "expected HOST:PORT"),
    ],
)
def test_no_address(address: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (Client, ControlClient):
        with pytest.raises(ConfigError) as caught:
            kind(address)
        assert said in str(caught.value)
    for command in (["client", address, "--prompt", "x"], ["scale", address, "--workers", "1"]):
        assert cli.main(command) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("address", ["a:1", "[::1]:50051", "[fe80::1%eth0]:1", "dns:///a:1", "unix:/run/em"])
def test_an_address(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("localhost:1", True),
        ("LOCALHOST.:1", True),
        ("a.localhost:1", True),
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("unix:/run/em", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("localhost.example:1", False),
        ("10.0.0.1:1", False),
        ("dns:///a:1", False),
    ],
)
def test_which_addresses_are_this_machine(address: str, local: bool) -> None:
    assert is_local(address) is local


@pytest.mark.parametrize(
    ("command", "port", "said"),
    [
        (["client", "--prompt", "x"], "control", "control port, and this needs its gRPC port"),
        (["client", "--prompt", "x"], "http", "HTTP port, and this needs a gRPC port"),
        (["top", "--count", "1"], "grpc", "gRPC port, and this needs its control port"),
        (["top", "--count", "1"], "metrics", "HTTP port, and this needs a gRPC port"),
        (["scale", "--workers", "1"], "grpc", "gRPC port, and this needs its control port"),
        (["experts", "list"], "grpc", "gRPC port, and this needs its control port"),
    ],
)
async def test_commands_say_it_in_one_line(
    plain: Fronts,
    command: list[str],
    port: str,
    said: str,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Signals are the main thread's, where the server is.
    monkeypatch.setattr(top, "sigterm_exits", nullcontext)
    place = 2 if command[0] == "experts" else 1
    arguments = [*command[:place], address_of(plain, port), *command[place:]]
    assert await asyncio.to_thread(cli.main, arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert line.startswith(f"expertmesh {command[0]}: error: ")
    assert said in line
