"""What the commands of a cluster have in common: folders and ports."""

import argparse
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from coordinator.api.grpc.address import parse_address
from expert_workers.machines.ports import NodePorts, PortRange
from expertmesh.commands.options import Option
from expertmesh.commands.values import whole_number
from expertmesh.errors import ConfigError
from expertmesh.shown_text import MAX_QUOTED

CLUSTER_FOLDER = Path("~/.expertmesh/cluster")
FOLDER = Option(
    "--folder", metavar="DIR", help="where this machine keeps its keys and certificates (%(default)s)"
)
CERTIFICATES = Option(
    "--certificates",
    metavar="DIR",
    help="ca.pem, node.pem and node.key of your own, for this machine's address; every machine needs its own",
)
CACHE = Option(
    "--cache",
    metavar="DIR",
    help="where files of models are kept (default: EXPERTMESH_CACHE, ~/.cache/expertmesh)",
)
port_number = whole_number(1024, 65535)


def ip_address(text: str) -> str:
    """Of version 4, as all of a cluster's are."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:MAX_QUOTED]!r} is not an IPv4 address") from None


def port_range(text: str) -> PortRange:
    """`MIN-MAX`, both included."""
    first, dash, last = text.partition("-")
    if not dash:
        raise argparse.ArgumentTypeError(f"{text[:MAX_QUOTED]!r} is not MIN-MAX, as in 20000-20099")
    made = PortRange(port_number(first), port_number(last))
    if made.first > made.last:
        raise argparse.ArgumentTypeError(f"{text[:MAX_QUOTED]!r} ends before it begins")
    return made


def enrolment(address: str) -> tuple[str, int]:
    """Host and port of where a head answers joiners. Raises ConfigError."""
    host, port = parse_address(address, "head")
    if ":" in host or not port:
        raise ConfigError(f"head address {address[:MAX_QUOTED]!r}: expected NAME:PORT or IPV4:PORT")
    return host, port


@dataclass(frozen=True, slots=True)
class PortArguments:
    """Of this machine's node; the defaults are the same on every machine."""

    node_port: Annotated[
        int,
        Option(
            "--node-port",
            parse=whole_number(1024, 65530),
            metavar="N",
            help="the first of six ports of Ray's services on this machine (%(default)s)",
        ),
    ] = NodePorts().first
    worker_ports: Annotated[
        PortRange,
        Option("--worker-ports", parse=port_range, metavar="MIN-MAX", help="of Ray's workers (%(default)s)"),
    ] = NodePorts().workers
    data_ports: Annotated[
        PortRange,
        Option(
            "--data-ports", parse=port_range, metavar="MIN-MAX", help="where workers take rows (%(default)s)"
        ),
    ] = NodePorts().data

    def __post_init__(self) -> None:
        services, *others = self.ports.ranges
        ranges = [("--node-port", services), ("--worker-ports", others[0]), ("--data-ports", others[1])]
        for at, (name, each) in enumerate(ranges):
            for other, ports in ranges[at + 1 :]:
                if each.overlaps(ports):
                    raise ConfigError(f"{name} {each} and {other} {ports} overlap")

    @property
    def ports(self) -> NodePorts:
        return NodePorts(self.node_port, self.worker_ports, self.data_ports)
