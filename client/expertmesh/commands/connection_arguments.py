"""The arguments that say how a server is reached, the same for every command that is a client."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from expertmesh.commands.options import Option
from expertmesh.errors import ConfigError

CONTROL_ADDRESS = Option("HOST:PORT", help="address of the server's ControlService")


@dataclass(frozen=True, slots=True)
class ConnectionArguments:
    """Of a Connection, whose module loads gRPC: the key here is in a file."""

    tls: Annotated[bool, Option("--tls", help="encrypt, and trust the system's CAs")] = False
    tls_ca: Annotated[
        Path | None, Option("--tls-ca", metavar="FILE", help="encrypt, and trust this CA (PEM)")
    ] = None
    tls_cert: Annotated[
        Path | None, Option("--tls-cert", metavar="FILE", help="the client's own certificate (PEM)")
    ] = None
    tls_key: Annotated[Path | None, Option("--tls-key", metavar="FILE", help="its key (PEM)")] = None
    api_key_file: Annotated[
        Path | None, Option("--api-key-file", metavar="FILE", help="a file with the API key in it")
    ] = None

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key need each other")
        if self.tls_cert is not None and not (self.tls or self.tls_ca):
            raise ConfigError("--tls-cert needs --tls or --tls-ca")
