"""The way between this machine and a head, as rows of checks: both directions, and how quick it is. Light."""

from collections.abc import Iterator

from expert_workers.machines import checks, reach
from expert_workers.machines.checks import Level, Row
from expert_workers.machines.enrol_client import EnrolClient
from expert_workers.machines.enrol_messages import ReachRequest
from expert_workers.machines.ports import NodePorts


def way_rows(
    client: EnrolClient, ports: NodePorts, address: str, head: str, head_ports: NodePorts
) -> Iterator[Row]:
    """`address` and `ports` are this machine's; `head` is HOST:PORT of Ray's. Raises ClusterError."""
    # Where a node runs here already, that one answers.
    free = set(ports.sample()) - set(reach.taken(ports.sample()))
    with reach.answering(free):
        failed = client.unreachable(ReachRequest(ports))
    yield checks.reachable("ports from the head", address, failed, ports)
    host, _, port = head.rpartition(":")
    there = (int(port), head_ports.first, head_ports.first + 1)
    yield checks.reachable("ports of the head", host, reach.unreachable(host, there, address), head_ports)
    rate = client.bytes_per_second()
    yield Row("link", Level.OK, f"{rate * 8 / 1e6:.0f} Mbit/s from the head")
