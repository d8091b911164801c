"""The arguments that say how a server is reached, the same for every command that is a client."""

import argparse
from pathlib import Path


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("connection")
    group.add_argument("--tls", action="store_true", help="encrypt, and trust the system's CAs")
    group.add_argument("--tls-ca", type=Path, metavar="FILE", help="encrypt, and trust this CA (PEM)")
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="the client's own certificate (PEM)")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its key (PEM)")
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="a file with the API key in it")
