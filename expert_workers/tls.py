"""TLS between the machines of one cluster, for streams and for what Ray is asked: PEM files to a context."""

import os
import ssl
from dataclasses import dataclass

from moe_model.errors import ConfigError

# In the environment of a process of a cluster's machine: the folder with that machine's files.
FOLDER_VARIABLE = "EXPERTMESH_CLUSTER"


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """PEM files: a certificate, its key, and the CA of all machines. The paths are the same on every machine;
    those that are no absolute paths are below the folder that FOLDER_VARIABLE names there."""

    cert: str
    key: str
    ca: str


def context(paths: TlsPaths, *, is_server: bool, what: str = "data plane TLS") -> ssl.SSLContext:
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


def _here(path: str) -> str:
    return os.path.join(os.environ.get(FOLDER_VARIABLE, ""), path)


def _no_password() -> str:
    """Instead of a question on the terminal."""
    return ""
