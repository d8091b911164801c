"""TLS between machines: files that no peer could accept, and when those that one can accept end."""

from pathlib import Path

import pytest
from cryptography import x509

from expert_workers.tls import TlsPaths, check_own
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import DAY, Authority
from tests.expert_workers.cluster.test_ray_tls import HOST, write_paths


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority(ends=9 * DAY)


def seconds(certificate: bytes) -> float:
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()


def test_our_own_files_are_looked_at_first(tmp_path: Path, authority: Authority) -> None:
    paths = write_paths(tmp_path / "ours", authority, authority.sign())
    check_own(paths)
    check_own(paths, HOST)
    with pytest.raises(ConfigError, match="is for another name or address"):
        check_own(paths, "192.0.2.1")
    old = write_paths(tmp_path / "old", authority, authority.sign(begins=-DAY, ends=-DAY / 2))
    early = write_paths(tmp_path / "early", authority, authority.sign(begins=DAY / 2))
    other = write_paths(tmp_path / "other", authority, Authority("other").sign())
    for bad, message in ((old, "has expired"), (early, "is not valid yet"), (other, "is not of the CA")):
        with pytest.raises(ConfigError, match=rf"^Ray TLS certificate {bad.cert}: {message}"):
            check_own(bad, what="Ray TLS")
    with pytest.raises(ConfigError, match=rf"^data plane TLS {paths.cert}: cannot be used"):
        check_own(TlsPaths(paths.cert, other.key, paths.ca))


def test_what_ends_first_counts_certificate_or_ca(tmp_path: Path, authority: Authority) -> None:
    for name, ends in (("soon", 3 * DAY), ("later", 30 * DAY)):
        signed = authority.sign(ends=ends)
        first = min(seconds(signed[0]), seconds(authority.pem))
        assert check_own(write_paths(tmp_path / name, authority, signed)) == first
    assert first == seconds(authority.pem)
