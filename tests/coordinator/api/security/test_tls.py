"""TLS files: which are refused at start, what a handshake gets, and what happens when they change."""

import logging
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.api.security.tls import TlsFiles, load, server_context
from coordinator.api.shared.file_watch import FileWatch
from coordinator.config.security import TlsConfig
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import DAY, Authority, key_pem, write_private


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def watched(config: TlsConfig) -> TlsFiles:
    """Files whose change is seen at once."""
    return TlsFiles(config, FileWatch(config.paths, interval=0))


def client_context(authority: Authority, identity: TlsConfig | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode())
    if identity is not None:
        context.load_cert_chain(identity.cert, identity.key)
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[bytes, str | None]:
    """The server's certificate and the version agreed on. Raises SSLError, whoever of them says no."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, answering) * 3:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    certificate = asking.getpeercert(binary_form=True)
    assert certificate is not None
    return ssl.DER_cert_to_PEM_cert(certificate).encode(), asking.version()


def test_a_pair_that_works(tmp_path: Path, authority: Authority) -> None:
    files = TlsFiles(authority.write(tmp_path))
    certificate, version = shake_hands(server_context(files), client_context(authority))
    assert certificate == files.current().cert
    assert version == "TLSv1.3"


@pytest.mark.parametrize(
    ("break_it", "at_fault", "message"),
    [
        (lambda c: c.key.unlink(), "key", "No such file"),
        (lambda c: c.cert.unlink(), "cert", "No such file"),
        (lambda c: c.client_ca.unlink(), "clients", "No such file"),
        (lambda c: c.key.chmod(0o644), "key", "run chmod 600"),
        (lambda c: c.key.write_bytes(b"nonsense"), "key", "is not a usable private key"),
        (lambda c: c.key.write_bytes(b""), "key", "is not a usable private key"),
        (lambda c: c.cert.write_bytes(b"nonsense"), "cert", "holds no certificate"),
        (lambda c: c.cert.write_bytes(c.cert.read_bytes()[:200]), "cert", "holds no certificate"),
        (lambda c: c.cert.write_bytes(c.key.read_bytes()), "cert", "holds no certificate"),
        (lambda c: c.client_ca.write_bytes(b""), "clients", "holds no certificate"),
        (lambda c: c.key.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()))), "key", "not belong"),
        (
            lambda c: c.key.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret")),
            "key",
            "without a password",
        ),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path, authority: Authority, break_it: Callable[[TlsConfig], None], at_fault: str, message: str
) -> None:
    config = authority.write(tmp_path, client_ca=authority.pem)
    load(config)
    break_it(config)
    with pytest.raises(ConfigError, match=f"{tmp_path}/{at_fault}.pem: .*{message}") as caught:
        TlsFiles(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("begins", "ends", "message"),
    [(-2 * DAY, -DAY, "expired"), (-2 * DAY, -timedelta(minutes=1), "expired"), (DAY, 2 * DAY, "not yet")],
)
def test_a_certificate_out_of_its_time_is_refused(
    tmp_path: Path, authority: Authority, begins: timedelta, ends: timedelta, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"cert.pem: .*{message}"):
        load(authority.write(tmp_path, begins=begins, ends=ends))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_the_oldest_version_is_1_2(tmp_path: Path, authority: Authority, version: ssl.TLSVersion) -> None:
    server = server_context(TlsFiles(authority.write(tmp_path)))
    client = client_context(authority)
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = version
    if version is ssl.TLSVersion.TLSv1_2:
        assert shake_hands(server, client)[1] == "TLSv1.2"
    else:
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
            shake_hands(server, client)


def test_a_new_pair_is_taken(tmp_path: Path, authority: Authority) -> None:
    config = authority.write(tmp_path)
    server, client = server_context(watched(config)), client_context(authority)
    before, _ = shake_hands(server, client)
    authority.write(tmp_path)
    after, _ = shake_hands(server, client)
    assert before != after == config.cert.read_bytes()


@pytest.mark.parametrize("name", ["key", "cert"])
def test_a_broken_new_pair_keeps_the_old_one(
    tmp_path: Path, authority: Authority, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of a rotation is such a pair."""
    config = authority.write(tmp_path)
    server, client = server_context(watched(config)), client_context(authority)
    before, _ = shake_hands(server, client)
    certificate, key = authority.sign()
    halves = {"cert": (config.cert, certificate), "key": (config.key, key)}
    write_private(*halves.pop(name))
    for _ in range(3):
        assert shake_hands(server, client)[0] == before
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "the certificate stays as it was" in errors[0]
    assert "PRIVATE" not in errors[0]
    for path, data in halves.values():
        write_private(path, data)
    assert shake_hands(server, client)[0] == certificate


def seconds(certificate: bytes) -> float:
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()


def test_when_certificates_end_is_known(tmp_path: Path, authority: Authority) -> None:
    config = authority.write(tmp_path)
    files = watched(config)
    assert files.current().ends == {"server": seconds(config.cert.read_bytes())}
    authority.write(tmp_path, ends=3 * DAY, client_ca=authority.pem)
    assert files.current().ends == {"server": seconds(config.cert.read_bytes())}, "also of a new pair"
    with_clients = TlsFiles(replace(config, client_ca=tmp_path / "clients.pem"))
    assert with_clients.current().ends["client_ca"] == seconds(authority.pem)


def test_the_first_certificate_of_a_file_to_end_counts(tmp_path: Path, authority: Authority) -> None:
    """Of a server's chain, and of the authorities of clients."""
    other = Authority("other CA", ends=2 * DAY)
    config = authority.write(tmp_path, ends=3 * DAY, client_ca=other.pem + authority.pem + other.pem)
    write_private(config.cert, config.cert.read_bytes() + authority.pem)
    assert load(config).ends == dict.fromkeys(("server", "client_ca"), seconds(authority.pem))


def test_clients_must_show_a_certificate_of_the_right_authority(tmp_path: Path, authority: Authority) -> None:
    others = Authority("other CA")
    for name in ("server", "known", "expired", "stranger"):
        (tmp_path / name).mkdir()
    server = server_context(TlsFiles(authority.write(tmp_path / "server", client_ca=authority.pem)))
    known = authority.write(tmp_path / "known")
    shake_hands(server, client_context(authority, known))
    expired = authority.write(tmp_path / "expired", begins=-2 * DAY, ends=-DAY)
    for identity in (None, others.write(tmp_path / "stranger"), expired):
        with pytest.raises(ssl.SSLError):
            shake_hands(server, client_context(authority, identity))


def test_the_authority_of_clients_changes_too(tmp_path: Path, authority: Authority) -> None:
    others = Authority("other CA")
    for name in ("server", "known", "other"):
        (tmp_path / name).mkdir()
    config = authority.write(tmp_path / "server", client_ca=authority.pem)
    server = server_context(watched(config))
    known = client_context(authority, authority.write(tmp_path / "known"))
    other = client_context(authority, others.write(tmp_path / "other"))
    shake_hands(server, known)
    assert config.client_ca is not None
    write_private(config.client_ca, others.pem)
    shake_hands(server, other)
    with pytest.raises(ssl.SSLError):
        shake_hands(server, known)
