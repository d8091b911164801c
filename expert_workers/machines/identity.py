"""What a machine shows to others: certificates, tokens; made, kept, renewed, or brought along."""

import secrets
import ssl
from pathlib import Path

from expert_workers.cluster.ray_tls import RAY_TLS
from expert_workers.machines import certificates
from expert_workers.machines.certificates import HEAD_NAME, RENEW_DAYS, Authority
from expert_workers.machines.cluster_folder import (
    CA,
    CERT,
    JOIN_TOKEN,
    KEY,
    OWN_CA,
    OWN_CA_KEY,
    RAY_TOKEN,
    ClusterFolder,
)
from expert_workers.machines.enrol_service import Secrets
from expert_workers.machines.join_token import JoinToken
from expert_workers.tls import TlsPaths, check_own
from moe_model.errors import ConfigError
from moe_model.files.private_files import check_private, read_bounded

_WHAT = "certificates"


def head_secrets(folder: ClusterFolder, address: str, brought: Path | None) -> Secrets:
    """Those that the folder has, and new ones where it has none. Raises ConfigError."""
    if brought is None:
        authority: Authority | None = _authority(folder)
        assert authority is not None
        _write_new(folder, CA, authority.pem)
        _sign_own(folder, authority, address)
    else:
        authority = None
        bring(folder, brought)
    check_identity(folder, address)
    ca = folder.read(CA)
    if not folder.has(RAY_TOKEN):
        folder.write(RAY_TOKEN, secrets.token_hex(32).encode())
    token = _join_token(folder, certificates.fingerprint(ca), brought is not None)
    return Secrets(ca, authority, token.secret, folder.read(RAY_TOKEN).decode().strip())


def bring(folder: ClusterFolder, brought: Path) -> None:
    """Copies another CA's certificates to where they are used. Raises ConfigError."""
    check_private(brought / KEY, _WHAT)
    for name in (CA, CERT, KEY):
        _write_new(folder, name, read_bounded(brought / name, _WHAT))


def check_identity(folder: ClusterFolder, address: str) -> None:
    """The certificate in use is one that others will accept at this address. Raises ConfigError."""
    check_own(paths(folder), address, what=RAY_TLS)
    left = certificates.days_left(folder.read(CERT))
    if left < 1:
        raise ConfigError(f"{_WHAT} {folder.file(CERT)}: ends within a day; bring a newer one")


def paths(folder: ClusterFolder) -> TlsPaths:
    return TlsPaths(*(str(folder.file(name)) for name in (CERT, KEY, CA)))


def server_context(folder: ClusterFolder) -> ssl.SSLContext:
    """Of a head, which asks joiners for a secret and for no certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(folder.file(CERT), folder.file(KEY))
    return made


def _authority(folder: ClusterFolder) -> Authority:
    if folder.has(OWN_CA):
        kept = Authority.load(folder.read(OWN_CA), folder.read(OWN_CA_KEY))
        if certificates.days_left(kept.pem) < RENEW_DAYS:
            raise ConfigError(
                f"{_WHAT} {folder.file(OWN_CA)}: this CA ends within {RENEW_DAYS:g} days; remove it, start "
                "again and copy the new join.token to all machines"
            )
        return kept
    made = Authority.new()
    # The key first: where there is a certificate, its key is there too.
    folder.write(OWN_CA_KEY, made.key_pem)
    folder.write(OWN_CA, made.pem)
    return made


def _sign_own(folder: ClusterFolder, authority: Authority, address: str) -> None:
    if folder.has(CERT) and folder.has(KEY):
        certificate, key = folder.read(CERT), folder.read(KEY)
        is_usable = certificates.is_for(certificate, address, key) and authority.has_signed(certificate)
        if is_usable and certificates.days_left(certificate) > RENEW_DAYS:
            return
    key = certificates.new_key()
    folder.write(KEY, key)
    folder.write(CERT, authority.sign(certificates.request_for(key), address, [HEAD_NAME]))


def _join_token(folder: ClusterFolder, ca: str, brings: bool) -> JoinToken:
    """The secret stays as long as the CA does."""
    if folder.has(JOIN_TOKEN):
        kept = JoinToken.read(folder.file(JOIN_TOKEN))
        if (kept.ca, kept.brings) == (ca, brings):
            return kept
    made = JoinToken.new(ca, brings)
    folder.write(JOIN_TOKEN, made.line().encode())
    return made


def _write_new(folder: ClusterFolder, name: str, data: bytes) -> None:
    if not folder.has(name) or folder.read(name) != data:
        folder.write(name, data)
