"""What a head makes, keeps and renews, and what it takes from its user."""

from datetime import timedelta
from pathlib import Path

import pytest

from expert_workers.machines import certificates, identity
from expert_workers.machines.cluster_folder import CERT, JOIN_TOKEN, KEY, OWN_CA, ClusterFolder
from expert_workers.machines.identity import head_secrets
from expert_workers.machines.join_token import JoinToken
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import DAY, Authority, write_private

HOST = "127.0.0.1"
FILES = ("own-ca.key", "own-ca.pem", "ca.pem", "node.key", "node.pem", "ray.token", "join.token")


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    return ClusterFolder.create(tmp_path / "head")


def brought(path: Path, authority: Authority, ends: timedelta = 30 * DAY) -> Path:
    path.mkdir()
    certificate, key = authority.sign(ends=ends)
    for name, data in (("ca.pem", authority.pem), ("node.pem", certificate), ("node.key", key)):
        write_private(path / name, data)
    return path


def test_a_second_start_keeps_what_joiners_know(folder: ClusterFolder) -> None:
    first = head_secrets(folder, HOST, None)
    before = {name: folder.read(name) for name in FILES}
    second = head_secrets(folder, HOST, None)
    assert {name: folder.read(name) for name in FILES} == before
    assert (second.ca, second.join_secret, second.ray_token) == (first.ca, first.join_secret, first.ray_token)


def test_another_address_or_a_near_end_is_another_certificate(
    folder: ClusterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    head_secrets(folder, HOST, None)
    before, token = folder.read(CERT), folder.read(JOIN_TOKEN)
    head_secrets(folder, "127.0.0.7", None)
    moved = folder.read(CERT)
    assert moved != before
    # With a longer time before the end, this one is due.
    monkeypatch.setattr(identity, "RENEW_DAYS", 366.0)
    head_secrets(folder, "127.0.0.7", None)
    assert folder.read(CERT) != moved
    assert folder.read(JOIN_TOKEN) == token


@pytest.mark.parametrize("killed_before", ["own-ca.pem", "node.key", "node.pem", "ray.token", "join.token"])
def test_a_start_that_was_killed_is_finished_by_the_next(folder: ClusterFolder, killed_before: str) -> None:
    head_secrets(folder, HOST, None)
    # In the order in which they are written.
    order = ("own-ca.key", "own-ca.pem", "node.key", "node.pem", "ray.token", "join.token")
    for name in order[order.index(killed_before) :]:
        folder.file(name).unlink()
    secrets = head_secrets(folder, HOST, None)
    assert secrets.authority is not None
    assert secrets.authority.has_signed(folder.read(CERT))
    assert JoinToken.read(folder.file(JOIN_TOKEN)).ca == certificates.fingerprint(secrets.ca)


def test_a_key_without_its_certificate_is_replaced(folder: ClusterFolder) -> None:
    """Killed between the two, while a certificate was renewed."""
    head_secrets(folder, HOST, None)
    folder.write(KEY, certificates.new_key())
    head_secrets(folder, HOST, None)
    assert certificates.is_for(folder.read(CERT), HOST, folder.read(KEY))


def test_a_ca_near_its_end_is_named(folder: ClusterFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    head_secrets(folder, HOST, None)
    monkeypatch.setattr(identity, "RENEW_DAYS", 3651.0)
    with pytest.raises(ConfigError, match=r"own-ca\.pem: this CA ends within .* remove it"):
        head_secrets(folder, HOST, None)
    folder.file(OWN_CA).unlink()
    monkeypatch.undo()
    head_secrets(folder, HOST, None)


def test_certificates_of_the_user_s_are_used(folder: ClusterFolder, tmp_path: Path) -> None:
    own = head_secrets(folder, HOST, None)
    authority = Authority()
    secrets = head_secrets(folder, HOST, brought(tmp_path / "theirs", authority))
    assert secrets.authority is None
    assert secrets.ca == authority.pem
    token = JoinToken.read(folder.file(JOIN_TOKEN))
    assert token.brings
    assert token.ca == certificates.fingerprint(authority.pem)
    assert token.secret != own.join_secret
    again = head_secrets(folder, HOST, None)
    assert again.ca == own.ca, "and back again"


def test_certificates_that_do_not_fit_are_named(folder: ClusterFolder, tmp_path: Path) -> None:
    authority = Authority()
    with pytest.raises(ConfigError, match="is for another name or address"):
        head_secrets(folder, "10.0.0.1", brought(tmp_path / "a", authority))
    with pytest.raises(ConfigError, match="ends within a day"):
        head_secrets(folder, HOST, brought(tmp_path / "b", authority, ends=DAY / 2))
    theirs = brought(tmp_path / "c", authority)
    write_private(theirs / "ca.pem", Authority("another").pem)
    with pytest.raises(ConfigError, match="is not of the CA"):
        head_secrets(folder, HOST, theirs)
    (theirs / "node.key").chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        head_secrets(folder, HOST, theirs)
    (theirs / "node.key").unlink()
    with pytest.raises(ConfigError, match="No such file"):
        head_secrets(folder, HOST, theirs)
