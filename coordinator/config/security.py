"""Who may reach a server, and how much of it a caller may have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from coordinator.config.key_limits import Limits, limits_argument
from expertmesh.commands.options import Group, Option
from expertmesh.commands.values import positive_seconds

# Half of the queue's default: no key takes all of it from the others.
DEFAULT_KEY_LIMITS = Limits(concurrent=128)


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """PEM files. With `client_ca`, clients must show a certificate that it has signed."""

    cert: Annotated[Path, Option("--tls-cert", metavar="FILE", help="certificate chain in PEM")]
    key: Annotated[Path, Option("--tls-key", metavar="FILE", help="its private key in PEM, mode 600")]
    client_ca: Annotated[
        Path | None,
        Option("--tls-client-ca", metavar="FILE", help="clients must show a certificate of this CA"),
    ] = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)


@dataclass(frozen=True, slots=True)
class SecurityConfig:
    """`reflection` None: on as long as there are no keys. `key_limits` are for keys whose line has none."""

    api_key_file: Annotated[
        Path | None,
        Option(
            "--api-key-file",
            metavar="FILE",
            help="a line for each key, from `expertmesh keys new NAME`; mode 600",
        ),
    ] = None
    key_limits: Annotated[
        Limits,
        Option(
            "--key-limits",
            parse=limits_argument,
            metavar="LIMITS",
            help="rps=N,concurrent=N,tokens_per_minute=N of keys whose line does not say (%(default)s)",
        ),
    ] = DEFAULT_KEY_LIMITS
    tls: Annotated[TlsConfig | None, Group()] = None
    insecure: Annotated[
        bool,
        Option(
            "--insecure",
            is_shared=True,
            help="listen anywhere, also without TLS and API keys; use --ray-address also where Ray asks "
            "for no token",
        ),
    ] = False
    reflection: Annotated[
        bool | None,
        Option(
            "--reflection",
            negatable=True,
            help="let clients of gRPC ask for the methods (on without API keys)",
        ),
    ] = None
    max_request_seconds: Annotated[
        float,
        Option(
            "--max-request-seconds",
            parse=positive_seconds,
            metavar="S",
            help="seconds after which any request ends (%(default)g)",
        ),
    ] = 3600.0
