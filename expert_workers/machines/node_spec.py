"""What a machine's Ray node is, as it is told to the process that starts it. Light."""

import json
import socket
from dataclasses import asdict, dataclass
from typing import Self

from expert_workers.machines.ports import NodePorts, PortRange

_MAX_LINE = 64 << 10


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """`head` is HOST:PORT of the GCS, which a head itself is to listen at."""

    head: str
    address: str
    is_head: bool
    num_cpus: int
    ports: NodePorts

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        value = json.loads(line)
        ports = value.pop("ports")
        ranges = (PortRange(**ports[name]) for name in ("workers", "data"))
        return cls(**value, ports=NodePorts(ports["first"], *ranges))


def receive_line(channel: socket.socket) -> bytes:
    """One line from a process of ours, and nothing after it; empty when it has ended."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_LINE:
        part = channel.recv(1)
        if not part:
            return b""
        line += part
    return line
