"""A certificate authority for tests, and files with what it signs."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coordinator.config.security import TlsConfig

DAY = timedelta(days=1)


class Authority:
    """Signs certificates for localhost and 127.0.0.1."""

    def __init__(self, name: str = "test CA", ends: timedelta = DAY) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        builder = _builder(self._name, self._name, self._key, -DAY, ends)
        self._certificate = builder.add_extension(constraints, critical=True).sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def sign(
        self,
        name: str = "localhost",
        begins: timedelta = -DAY,
        ends: timedelta = DAY,
        *,
        addresses: Sequence[str] = ("127.0.0.1",),
    ) -> tuple[bytes, bytes]:
        """A new certificate and its key, in PEM. The times count from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        numbers = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        names = [x509.DNSName(name), *numbers]
        builder = _builder(_name(name), self._name, key, begins, ends)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), key_pem(key)

    def write(
        self,
        folder: Path,
        *,
        client_ca: bytes | None = None,
        begins: timedelta = -DAY,
        ends: timedelta = DAY,
    ) -> TlsConfig:
        """The files of a server, new ones or over those of before."""
        certificate, key = self.sign(begins=begins, ends=ends)
        config = TlsConfig(
            folder / "cert.pem", folder / "key.pem", None if client_ca is None else folder / "clients.pem"
        )
        write_private(config.key, key)
        write_private(config.cert, certificate)
        if config.client_ca is not None and client_ca is not None:
            write_private(config.client_ca, client_ca)
        return config


def write_private(path: Path, data: bytes) -> Path:
    """Replaces a file at once, as whoever rotates secrets does."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.chmod(0o600)
    return new.rename(path)


def key_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password),
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    begins: timedelta,
    ends: timedelta,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
