"""Certificates of a cluster's machines: its own CA, and what that signs."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from moe_model.errors import ConfigError

# The name of a head, which no joiner's certificate has: so none of them can stand in for it.
HEAD_NAME = "head.expertmesh.internal"
# A certificate that ends sooner is replaced by the next start.
RENEW_DAYS = 30.0
_CA_LIFE, _LIFE = timedelta(days=3650), timedelta(days=365)
# Clocks differ: a new certificate is valid on a machine that is so far behind.
_BACKDATED = timedelta(hours=1)
_DAY = timedelta(days=1)


class Authority:
    """A CA and its key. Signs certificates of machines and no further CA."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def new(cls) -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _named("expertmesh cluster CA")
        usage = _usage(key_cert_sign=True, crl_sign=True)
        builder = _builder(name, name, key.public_key(), key.public_key(), _CA_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(builder.add_extension(usage, critical=True).sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Self:
        """Of PEM. Raises ConfigError."""
        try:
            loaded = serialization.load_pem_private_key(key, None)
            made = x509.load_pem_x509_certificate(certificate)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"the cluster's CA cannot be read: {error}") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != made.public_key():
            raise ConfigError("the key of the cluster's CA does not belong to its certificate")
        return cls(made, loaded)

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return _key_pem(self._key)

    def has_signed(self, certificate: bytes) -> bool:
        """Raises ConfigError for what is no certificate."""
        try:
            _loaded(certificate).verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def sign(self, request: bytes, address: str, names: Sequence[str] = ()) -> bytes:
        """A certificate, in PEM, for whom a request's key belongs to; whatever else the request asks for is
        not looked at. `address` is where its machine is. Raises ConfigError."""
        try:
            asked = x509.load_pem_x509_csr(request)
            key = asked.public_key()
            is_signed = asked.is_signature_valid
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise ConfigError("the request for a certificate cannot be read") from None
        if not is_signed or not isinstance(key, ec.EllipticCurvePublicKey):
            raise ConfigError("the request for a certificate is not signed by the key in it, a key of EC")
        builder = _builder(
            _named(address), self._certificate.subject, key, self._certificate.public_key(), _LIFE
        )
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(digital_signature=True), critical=True)
        builder = builder.add_extension(usages, critical=False)
        builder = builder.add_extension(_alternatives(address, names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def new_key() -> bytes:
    """A private key, in PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def request_for(key: bytes) -> bytes:
    """A request for a certificate of the key, in PEM."""
    loaded = serialization.load_pem_private_key(key, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    builder = x509.CertificateSigningRequestBuilder().subject_name(_named("expertmesh"))
    return builder.sign(loaded, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def days_left(certificate: bytes) -> float:
    """Until the first certificate of a PEM text ends. Raises ConfigError."""
    return (_loaded(certificate).not_valid_after_utc - datetime.now(UTC)) / _DAY


def is_for(certificate: bytes, address: str, key: bytes) -> bool:
    """Whether it names an address, and belongs to a key. Raises ConfigError."""
    made = _loaded(certificate)
    try:
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        loaded = serialization.load_pem_private_key(key, None)
    except (x509.ExtensionNotFound, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    addresses = [str(each) for each in names.get_values_for_type(x509.IPAddress)]
    return address in addresses and loaded.public_key() == made.public_key()


def fingerprint(ca: bytes) -> str:
    """SHA-256 of all certificates of a PEM text, in hexadecimal digits: who trusts the text trusts each of
    them. Raises ConfigError."""
    return sha256(b"".join(each.public_bytes(serialization.Encoding.DER) for each in _all_of(ca))).hexdigest()


def without_more(ca: bytes) -> bytes:
    """The certificates that `fingerprint` is of, in PEM, and nothing in which another reader could find one
    more. Raises ConfigError."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in _all_of(ca))


def _all_of(certificates: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(certificates)
    except ValueError:
        raise ConfigError("is no certificate in PEM") from None


def _loaded(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise ConfigError("is no certificate in PEM") from None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: object,
    life: timedelta,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    assert isinstance(issuer_key, ec.EllipticCurvePublicKey)
    of_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(of_issuer, critical=False)
    )


def _alternatives(address: str, names: Sequence[str]) -> x509.SubjectAlternativeName:
    """Ray's processes of one machine also find each other at 127.0.0.1."""
    numbers = dict.fromkeys(map(ipaddress.ip_address, (address, "127.0.0.1")))
    return x509.SubjectAlternativeName([*map(x509.DNSName, names), *map(x509.IPAddress, numbers)])


def _usage(**given: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: given.get(name, False) for name in names})


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
