"""A cluster's head: Ray's, and what answers joiners, until a signal or the end of one of Ray's processes."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from expert_workers.machines import checks
from expert_workers.machines.cluster_folder import JOIN_TOKEN, ClusterFolder, Membership
from expert_workers.machines.enrol_server import EnrolServer
from expert_workers.machines.enrol_service import EnrolService, Slows
from expert_workers.machines.identity import head_secrets, server_context
from expert_workers.machines.node_environment import node_environment
from expert_workers.machines.node_spec import NodeSpec
from expert_workers.machines.ports import NodePorts
from expert_workers.machines.ray_node import RayNode
from expert_workers.machines.wakes import Wakes
from moe_model.errors import ClusterError, ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """`certificates`: a folder with ca.pem, node.pem,
    node.key of a CA of the user's. `num_cpus`: 0 for a machine that holds no workers."""

    folder: Path
    address: str
    port: int
    enrol_port: int
    ports: NodePorts
    certificates: Path | None
    has_tls: bool
    num_cpus: int
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HeadReady:
    """Where joiners ask, and the file that lets them in."""

    membership: Membership
    enrol: str
    token: Path


def run_head(plan: HeadPlan, wakes: Wakes, slows: Slows, ready: Callable[[HeadReady], None]) -> None:
    """Raises HaltedError after a signal, ClusterError and ConfigError. What it has started has ended then."""
    address = plan.address
    with ExitStack() as stack:
        folder = ClusterFolder.create(plan.folder)
        stack.enter_context(folder.held())
        server = _listen(address, plan.enrol_port)
        stack.callback(server.close)
        _require_free(plan)
        secrets = head_secrets(folder, address, plan.certificates)
        head = f"{address}:{plan.port}"
        membership = Membership(head, address, is_head=True, has_tls=plan.has_tls, ports=plan.ports)
        folder.remember(membership)
        spec = NodeSpec(head, address, True, plan.num_cpus, plan.ports)
        node = RayNode.start(spec, node_environment(folder, membership, plan.environment), wakes)
        stack.callback(node.end)
        server.start(EnrolService(secrets, membership, slows), server_context(folder))
        ready(HeadReady(membership, f"{address}:{server.port}", folder.file(JOIN_TOKEN)))
        name = node.wait_lost(wakes)
        raise ClusterError(
            f"Ray's {name} has died, and with it the cluster; start head again, joiners come back"
        )


def _listen(address: str, port: int) -> EnrolServer:
    try:
        return EnrolServer(address, port)
    except OSError as error:
        raise ConfigError(
            f"enrol address {address}:{port}: cannot be listened on ({error.strerror}); is another head "
            "running, or is this not an address of this machine (--address, --enrol-port)?"
        ) from None


def _require_free(plan: HeadPlan) -> None:
    row = checks.free_ports([plan.port, *plan.ports.all()], plan.ports)
    if row.level is checks.Level.ERROR:
        raise ConfigError(f"port {row.said}; {row.todo}")
