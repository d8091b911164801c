"""What of every machine of a cluster would go wrong: each looks at itself, and at the ways to all others.

Asks through Ray, of which this process is a driver; every wait ends.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.cluster.ray_errors import first_line
from expert_workers.machines import reach
from expert_workers.machines.checks import Level, Row, machine_rows
from moe_model.remote.settings import cache_of

# For all machines together: each starts a process, and may wait for connections that a firewall drops.
PATIENCE = 40.0
# A clock that is so far away shows in logs; certificates take more.
_MUCH = 5.0


@dataclass(frozen=True, slots=True)
class _Node:
    node_id: str
    address: str
    port: int


def cluster_rows(head: str, patience: float = PATIENCE) -> dict[str, list[Row]]:
    """By the address of each machine. `head` is HOST:PORT of Ray's, of whose cluster this machine is a node;
    token and TLS are in the environment. Raises ClusterError, ConfigError."""
    cluster = RayCluster.connect(head)
    try:
        known = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [
            _Node(str(each["NodeID"]), str(each["NodeManagerAddress"]), int(each["NodeManagerPort"]))
            for each in known
            if each["Alive"]
        ]
        return _asked(nodes, time.monotonic() + patience)
    finally:
        cluster.close()


def _asked(nodes: list[_Node], deadline: float) -> dict[str, list[Row]]:
    where = {node: NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes}
    look: Any = ray.remote(_look)
    pending = {
        look.options(num_cpus=0, max_retries=0, scheduling_strategy=where[node]).remote(
            [(other.address, other.port) for other in nodes if other != node]
        ): node
        for node in nodes
    }
    found = {}
    while pending:
        ready, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        for answer in ready:
            found[pending.pop(answer).address] = _rows(answer)
        if not ready:
            break
    silent = Row("node", Level.ERROR, "does not answer", "look at its load and its network; join it again")
    return found | {node.address: [silent] for node in pending.values()}


def _rows(answer: Any) -> list[Row]:
    now = time.time()
    try:
        rows, its = ray.get(answer, timeout=_MUCH)
    except RayError as error:
        return [Row("node", Level.ERROR, first_line(error), "join it again")]
    return [*rows, _clock(its - now)]


def _clock(ahead: float) -> Row:
    if abs(ahead) > _MUCH:
        said = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
        return Row("clock", Level.WARNING, said, "set both by NTP (timedatectl set-ntp true)")
    return Row("clock", Level.OK, "as this machine's")


def _look(others: list[tuple[str, int]]) -> tuple[list[Row], float]:
    """Runs on the machine that is looked at; its clock at the end."""
    rows = [*machine_rows(cache_of().path), _ways(others)]
    return rows, time.time()


def _ways(others: list[tuple[str, int]]) -> Row:
    """To the node managers of all other machines, which stand for their ports."""
    failed: Mapping[str, str] = {
        f"{host}:{port}": why for host, port in others for why in reach.unreachable(host, [port]).values()
    }
    if not failed:
        return Row("other machines", Level.OK, f"{len(others)} can be reached")
    said = ", ".join(f"{where} ({why})" for where, why in list(failed.items())[:4])
    return Row(
        "other machines",
        Level.ERROR,
        f"cannot reach {said}",
        "a firewall is between: open all ports of a node",
    )
