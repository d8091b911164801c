"""The arguments that say who may reach a server."""

import argparse
from pathlib import Path

from coordinator.api.security.tls import TlsConfig
from coordinator.commands.keys import key_limits
from coordinator.server.settings import SecurityConfig
from expertmesh.commands.values import positive_seconds
from moe_model.errors import ConfigError


def add_security_arguments(parser: argparse.ArgumentParser) -> None:
    default = SecurityConfig()
    group = parser.add_argument_group(
        "security",
        "Addresses other than loopback need TLS and API keys. EXPERTMESH_API_KEY may hold one more key.",
    )
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="a line for each key, from `expertmesh keys new NAME`; mode 600",
    )
    group.add_argument(
        "--key-limits",
        type=key_limits,
        default=default.key_limits,
        metavar="LIMITS",
        help="rps=N,concurrent=N,tokens_per_minute=N of keys whose line does not say "
        f"(concurrent={default.key_limits.concurrent})",
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain in PEM")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key in PEM, mode 600")
    group.add_argument(
        "--tls-client-ca", type=Path, metavar="FILE", help="clients must show a certificate of this CA"
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help="listen anywhere, also without TLS and API keys; use --ray-address also where Ray asks nobody "
        "for a token",
    )
    group.add_argument(
        "--reflection",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let clients of gRPC ask for the methods (on without API keys)",
    )
    group.add_argument(
        "--max-request-seconds",
        type=positive_seconds,
        default=default.max_request_seconds,
        metavar="S",
        help=f"seconds after which any request ends ({default.max_request_seconds:.0f})",
    )


def security_config(args: argparse.Namespace) -> SecurityConfig:
    """Raises ConfigError for files that only make sense together."""
    return SecurityConfig(
        api_key_file=args.api_key_file,
        key_limits=args.key_limits,
        tls=_tls_config(args.tls_cert, args.tls_key, args.tls_client_ca),
        insecure=args.insecure,
        reflection=args.reflection,
        max_request_seconds=args.max_request_seconds,
    )


def _tls_config(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsConfig | None:
    if cert is None and key is None:
        if client_ca is not None:
            raise ConfigError("--tls-client-ca needs --tls-cert and --tls-key")
        return None
    if cert is None or key is None:
        raise ConfigError("--tls-cert and --tls-key are needed together")
    return TlsConfig(cert, key, client_ca)
