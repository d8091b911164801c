"""PEM files for Python's own TLS, each refused by name where it holds something else."""

import ssl
from pathlib import Path

from expertmesh.errors import ConfigError


def load_ca(context: ssl.SSLContext, path: Path, what: str) -> None:
    """Trusts the certificates in the file. Raises ConfigError."""
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise ConfigError(f"{what} {path}: holds no certificate in PEM") from None
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror}") from None


def load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Shows the certificate to the other side, with the key that belongs to it. Raises ConfigError."""
    load_ca(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, "TLS certificate")
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"TLS key {key}: does not belong to the certificate {cert}") from None
        raise ConfigError(f"TLS key {key}: is not a usable private key in PEM without a password") from None
    except OSError as error:
        raise ConfigError(f"TLS key {key}: {error.strerror}") from None


def _no_password() -> str:
    """Instead of a question on the terminal."""
    return ""
