"""TLS between the machines of one cluster, for streams and for what Ray is asked: PEM files to a context."""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from moe_model.errors import ConfigError

# In the environment of a process of a cluster's machine: the folder with that machine's files.
FOLDER_VARIABLE = "EXPERTMESH_CLUSTER"
_DATA_PLANE = "data plane TLS"
_NOT_YET_VALID, _EXPIRED = 9, 10
_WRONG_NAME = (62, 64)


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """PEM files: a certificate, its key, and the CA of all machines. The paths are the same on every machine;
    those that are no absolute paths are below the folder that FOLDER_VARIABLE names there."""

    cert: str
    key: str
    ca: str


def context(paths: TlsPaths, *, is_server: bool, what: str = _DATA_PLANE) -> ssl.SSLContext:
    """`what` is what they are for. Raises ConfigError naming the file at fault."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    cert, key, ca = map(_here, (paths.cert, paths.key, paths.ca))
    path = ca
    try:
        made.load_verify_locations(cafile=ca)
        path = cert
        made.load_cert_chain(cert, key, password=_no_password)
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise ConfigError(f"{what} {path}: cannot be used ({reason})") from None
    return made


def check_own(paths: TlsPaths, name: str | None = None, *, what: str = _DATA_PLANE) -> float:
    """Shakes hands in memory with itself; when the first ends of the certificate and its CA's, in seconds
    since 1970. Raises ConfigError for files that no peer could accept.

    `name` is where peers will find the certificate, if that is known.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = context(paths, is_server=False, what=what)
    asking.check_hostname = name is not None
    client = asking.wrap_bio(to_client, to_server, server_hostname=name)
    server = context(paths, is_server=True, what=what).wrap_bio(to_server, to_client, server_side=True)
    for peer in (client, server, client, server):
        try:
            peer.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            reason = reason_of(error) or f"is not of the CA {paths.ca} ({error.verify_message})"
            raise ConfigError(f"{what} certificate {paths.cert}: {reason}") from None
        except ssl.SSLError as error:
            raise ConfigError(f"{what} certificate {paths.cert}: cannot be used ({error.reason})") from None
    shown = client.getpeercert()
    assert shown
    return min(map(_end, [shown, *asking.get_ca_certs()]))


def reason_of(error: ssl.SSLCertVerificationError) -> str | None:
    """What is wrong with a certificate besides its signature; None where it is that."""
    if error.verify_code == _EXPIRED:
        return "has expired, unless this machine's clock is wrong"
    if error.verify_code == _NOT_YET_VALID:
        return "is not valid yet, unless this machine's clock is wrong"
    if error.verify_code in _WRONG_NAME:
        return f"is for another name or address ({error.verify_message})"
    return None


def _end(certificate: Mapping[str, object]) -> float:
    """Of a certificate as Python's library has it."""
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))


def _here(path: str) -> str:
    return os.path.join(os.environ.get(FOLDER_VARIABLE, ""), path)


def _no_password() -> str:
    """Instead of a question on the terminal."""
    return ""
