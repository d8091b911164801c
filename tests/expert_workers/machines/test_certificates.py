"""Certificates: what the CA signs, and what it does not."""

import ssl
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from expert_workers.machines.certificates import (
    HEAD_NAME,
    Authority,
    days_left,
    fingerprint,
    is_for,
    new_key,
    request_for,
)
from moe_model.errors import ConfigError


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.new()


def test_a_certificate_is_for_its_address_and_key(authority: Authority) -> None:
    key = new_key()
    made = authority.sign(request_for(key), "10.0.0.3")
    assert is_for(made, "10.0.0.3", key)
    assert is_for(made, "127.0.0.1", key), "Ray's processes of one machine find each other there"
    assert not is_for(made, "10.0.0.4", key)
    assert not is_for(made, "10.0.0.3", new_key())
    assert authority.has_signed(made)
    assert not Authority.new().has_signed(made)
    assert 364 < days_left(made) <= 365


def test_a_ca_survives_its_files(authority: Authority) -> None:
    again = Authority.load(authority.pem, authority.key_pem)
    assert again.pem == authority.pem
    assert again.has_signed(authority.sign(request_for(new_key()), "::1"))
    with pytest.raises(ConfigError, match="does not belong"):
        Authority.load(authority.pem, Authority.new().key_pem)
    with pytest.raises(ConfigError, match="cannot be read"):
        Authority.load(b"x", authority.key_pem)


def test_a_joiner_gets_no_name_and_no_right_that_it_asks_for(authority: Authority) -> None:
    key = serialization.load_pem_private_key(new_key(), None)
    asked = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, HEAD_NAME)])
    )
    asked = asked.add_extension(x509.SubjectAlternativeName([x509.DNSName(HEAD_NAME)]), critical=False)
    asked = asked.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    request = asked.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    made = x509.load_pem_x509_certificate(
        authority.sign(request.public_bytes(serialization.Encoding.PEM), "10.0.0.3")
    )
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.3", "127.0.0.1"]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert HEAD_NAME not in made.subject.rfc4514_string()


@pytest.mark.parametrize("request_", [b"", b"x", b"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n"])
def test_what_is_no_request_is_refused(authority: Authority, request_: bytes) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        authority.sign(request_, "10.0.0.3")


def test_only_keys_of_ec_are_signed(authority: Authority) -> None:
    key = rsa.generate_private_key(65537, 2048)
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    with pytest.raises(ConfigError, match="EC"):
        authority.sign(asked.public_bytes(serialization.Encoding.PEM), "10.0.0.3")


def test_a_request_that_another_key_has_signed_is_refused(authority: Authority) -> None:
    request = x509.load_pem_x509_csr(request_for(new_key())).public_bytes(serialization.Encoding.DER)
    forged = request[:-1] + bytes((request[-1] ^ 1,))
    pem = ssl.DER_cert_to_PEM_cert(forged).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
    with pytest.raises(ConfigError, match="request for a certificate"):
        authority.sign(pem, "10.0.0.3")


def test_a_certificate_is_valid_where_clocks_are_behind(authority: Authority) -> None:
    made = x509.load_pem_x509_certificate(authority.sign(request_for(new_key()), "10.0.0.3"))
    assert (datetime.now(UTC) - made.not_valid_before_utc).total_seconds() > 3500


def test_a_fingerprint_is_of_all_certificates(authority: Authority) -> None:
    certificate = x509.load_pem_x509_certificate(authority.pem)
    expected = certificate.fingerprint(hashes.SHA256()).hex()
    assert fingerprint(authority.pem) == expected
    assert fingerprint(b"some text\n" + authority.pem) == expected
    assert fingerprint(authority.pem + Authority.new().pem) != expected
    for broken in (b"", b"x", b"-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n"):
        with pytest.raises(ConfigError):
            fingerprint(broken)
