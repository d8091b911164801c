"""What the processes of a machine's Ray get of our environment, and what is added. Light."""

from collections.abc import Mapping

from expert_workers.machines.cluster_folder import ClusterFolder, Membership


def node_environment(
    folder: ClusterFolder, membership: Membership, ours: Mapping[str, str]
) -> dict[str, str]:
    """Of the process that starts Ray, and so of all that Ray starts."""
    # The address would be another Ray's.
    changed = {**folder.environment(membership), "RAY_ADDRESS": None}
    kept = {name: value for name, value in ours.items() if name not in changed}
    return kept | {name: value for name, value in changed.items() if value is not None}
