"""expertmesh leave: this machine is rid of its workers, and its node ends; for hooks of services."""

import argparse
import sys

from coordinator.commands.cluster_arguments import CLUSTER_FOLDER
from coordinator.commands.leave_arguments import LeaveArguments
from expert_workers.cluster.leave import leave
from expert_workers.cluster.ray_environment import changed_environment
from expert_workers.machines.cluster_folder import ClusterFolder
from expertmesh.commands.options import options_of


def run(args: argparse.Namespace) -> int:
    """1 where workers are still there when the time is over. Raises ConfigError, ClusterError."""
    given = options_of(args, LeaveArguments)
    has_left = _leave(given)
    if not has_left:
        sys.stderr.write(
            f"workers are still here after {given.timeout:g} s: no other machine has room for their experts, "
            "or no coordinator looks after them\n"
        )
    return 0 if has_left else 1


def _leave(given: LeaveArguments) -> bool:
    if given.ray_address is not None:
        return leave(given.timeout, given.ray_address)
    if given.folder == CLUSTER_FOLDER and not given.folder.expanduser().exists():
        return leave(given.timeout)
    folder = ClusterFolder.find(given.folder)
    membership = folder.membership()
    # For the joiner, which would start a node anew that has ended.
    with changed_environment(folder.environment(membership)), folder.leaving():
        return leave(given.timeout, membership.head, at=membership.address)
