"""TLS between the machines of one cluster, for streams and for what Ray is asked: PEM files to a context."""

import ssl
from dataclasses import dataclass

from moe_model.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """PEM files, at the same paths on every machine: a certificate, its key, and the CA of all of them."""

    cert: str
    key: str
    ca: str


def context(paths: TlsPaths, *, is_server: bool, what: str = "data plane TLS") -> ssl.SSLContext:
    """`what` is what they are for. Raises ConfigError naming the file at fault."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    path = paths.ca
    try:
        made.load_verify_locations(cafile=paths.ca)
        path = paths.cert
        made.load_cert_chain(paths.cert, paths.key, password=_no_password)
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise ConfigError(f"{what} {path}: cannot be used ({reason})") from None
    return made


def _no_password() -> str:
    """Instead of a question on the terminal."""
    return ""
