"""The arguments of `expertmesh head`."""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from coordinator.api.shared import logging_setup
from coordinator.commands.cluster_arguments import (
    CERTIFICATES,
    CLUSTER_FOLDER,
    FOLDER,
    PortArguments,
    ip_address,
    port_number,
)
from coordinator.commands.start_report import Say, plainly
from expert_workers.machines.ports import ENROL_PORT, GCS_PORT
from expertmesh.commands.options import Group, Option, add_options


@dataclass(frozen=True, slots=True)
class HeadArguments:
    """What a head is told."""

    address: Annotated[
        str | None,
        Option(
            "--address",
            parse=ip_address,
            metavar="IP",
            help="of this machine, at which the others reach it (that of its default route)",
        ),
    ] = None
    port: Annotated[
        int, Option("--port", parse=port_number, metavar="N", help="of Ray's head (%(default)s)")
    ] = GCS_PORT
    enrol_port: Annotated[
        int,
        Option(
            "--enrol-port", parse=port_number, metavar="N", help="where machines ask to join (%(default)s)"
        ),
    ] = ENROL_PORT
    ports: Annotated[PortArguments, Group()] = field(default_factory=PortArguments)
    folder: Annotated[Path, FOLDER] = CLUSTER_FOLDER
    certificates: Annotated[Path | None, CERTIFICATES] = None
    no_tls: Annotated[
        bool,
        Option(
            "--no-tls", help="encrypt neither Ray nor rows; other addresses than loopback need --insecure"
        ),
    ] = False
    insecure: Annotated[bool, Option("--insecure", help="allow --no-tls on any address")] = False
    with_worker: Annotated[
        bool,
        Option(
            "--with-worker",
            help="this machine may hold workers too; else it is left to the coordinator",
        ),
    ] = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, HeadArguments)


def say_with(args: argparse.Namespace) -> Say:
    """What it says besides READY is for people, on standard error."""
    logging_setup.configure(sys.stderr, "text", "info")
    return plainly(sys.stderr)
