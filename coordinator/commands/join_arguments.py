"""The arguments of `expertmesh join`."""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from coordinator.api.shared import logging_setup
from coordinator.commands.cluster_arguments import (
    CACHE,
    CERTIFICATES,
    CLUSTER_FOLDER,
    FOLDER,
    PortArguments,
    ip_address,
)
from coordinator.commands.start_report import Say, plainly
from expertmesh.commands.options import Group, Option, add_options
from expertmesh.commands.values import positive_seconds

HEAD = Option("HOST:PORT", help="where the head answers joiners, as `expertmesh head` says it")
TOKEN_FILE = Option("--token-file", metavar="FILE", help="a copy of the head's join.token, mode 600")


@dataclass(frozen=True, slots=True)
class JoinArguments:
    """What a joiner is told."""

    head: Annotated[str, HEAD]
    token_file: Annotated[Path, TOKEN_FILE]
    address: Annotated[
        str | None,
        Option(
            "--address",
            parse=ip_address,
            metavar="IP",
            help="of this machine, at which the others reach it (default: the one that leads to the head)",
        ),
    ] = None
    ports: Annotated[PortArguments, Group()] = field(default_factory=PortArguments)
    folder: Annotated[Path, FOLDER] = CLUSTER_FOLDER
    certificates: Annotated[Path | None, CERTIFICATES] = None
    cache: Annotated[Path | None, CACHE] = None
    cache_bytes: Annotated[
        str | None,
        Option(
            "--cache-bytes", metavar="N", help="of them, at most, as 200GiB (default: EXPERTMESH_CACHE_BYTES)"
        ),
    ] = None
    head_timeout: Annotated[
        float,
        Option(
            "--head-timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds without a head after which this machine gives up (%(default)g)",
        ),
    ] = 300.0
    leave_timeout: Annotated[
        float,
        Option(
            "--leave-timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds that its workers have to be emptied after the first signal (%(default)g)",
        ),
    ] = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, JoinArguments)


def say_with(args: argparse.Namespace) -> Say:
    """What it says besides READY is for people, on standard error."""
    logging_setup.configure(sys.stderr, "text", "info")
    return plainly(sys.stderr)
