"""A machine leaves a running Ray: it gets no more workers, and those that it has go elsewhere.

Ray itself is told, so that whatever places workers knows it. Its node ends by itself once nothing runs there.
"""

import time
from collections.abc import Mapping

from ray._private import services as ray_services
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]
    DRAIN_NODE_REASON_PREEMPTION,
)
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]
from ray.exceptions import RayError

from expert_workers.cluster.ray_cluster import preflighted
from expert_workers.cluster.ray_errors import first_line
from moe_model.errors import ClusterError

_WHY = "the machine leaves"
_LOOK_SECONDS = 0.1
_ANSWER_SECONDS = 5.0


def leave(timeout: float, address: str = "auto", at: str | None = None) -> bool:
    """Tells the Ray at HOST:PORT, or this machine's, that this machine leaves, and waits until its node has
    ended; whether it has within `timeout` seconds. Leaving again goes on with it.

    `at` is the address of the machine in the cluster, None: that of its way to the head. Raises ClusterError,
    ConfigError.
    """
    where = preflighted(address, insecure=True)
    try:
        client = GcsClient(address=where)
        leaving = _nodes_here(client, where, at)
        deadline = time.monotonic() + timeout
        for each in leaving:
            # A deadline of 0 is none: it is we who end what has not ended by itself.
            is_accepted, reason = client.drain_node(each, DRAIN_NODE_REASON_PREEMPTION, _WHY, 0)
            if not is_accepted:
                raise ClusterError(f"Ray at {where} does not let the machine go: {reason}")
        while any(node.state == GcsNodeInfo.ALIVE for each, node in _all(client).items() if each in leaving):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_SECONDS)
    except RayError as error:
        raise ClusterError(f"Ray at {where} does not answer: {first_line(error)}") from None
    return True


def _nodes_here(client: GcsClient, where: str, at: str | None) -> set[str]:
    here = at or str(ray_services.get_node_ip_address(where))  # type: ignore[no-untyped-call]
    ever = {each: node for each, node in _all(client).items() if node.node_manager_address == here}
    if not ever:
        raise ClusterError(f"Ray at {where} has no node at {here}, the address of this machine")
    ids = {each for each, node in ever.items() if node.state == GcsNodeInfo.ALIVE}
    if any(ever[each].is_head_node for each in ids):
        raise ClusterError(
            f"Ray at {where} has its head on this machine, which cannot leave: end the coordinator, "
            "then the head"
        )
    return ids


def _all(client: GcsClient) -> Mapping[str, GcsNodeInfo]:
    """Those that there ever were, by their ids."""
    nodes = client.get_all_node_info(timeout=_ANSWER_SECONDS)
    return {key.hex(): node for key, node in nodes.items()}
