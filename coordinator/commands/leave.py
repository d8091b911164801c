"""expertmesh leave: empties the workers of this machine's node, which no new rows reach then."""

import argparse
import sys

from coordinator.commands.leave_arguments import LeaveArguments
from expert_workers.cluster.leave import leave
from expert_workers.cluster.ray_environment import changed_environment
from expert_workers.machines.cluster_folder import ClusterFolder
from expertmesh.commands.options import options_of


def run(args: argparse.Namespace) -> int:
    """1 where workers are still there when the time is over. Raises ConfigError, ClusterError."""
    given = options_of(args, LeaveArguments)
    folder = ClusterFolder.find(given.folder)
    membership = folder.membership()
    with changed_environment({**folder.environment(membership), "RAY_ADDRESS": membership.head}):
        left = leave(given.timeout)
    if left:
        sys.stderr.write(f"{left} workers are still here after {given.timeout:g} s\n")
    return 1 if left else 0
