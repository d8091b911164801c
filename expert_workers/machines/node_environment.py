"""What the processes of a machine's Ray get of our environment, and what is added. Light."""

import os
from collections.abc import Mapping
from pathlib import Path

from expert_workers.machines.cluster_folder import ClusterFolder, Membership

CACHE_VARIABLE, CACHE_BYTES_VARIABLE = "EXPERTMESH_CACHE", "EXPERTMESH_CACHE_BYTES"
_USUAL_CACHE = "~/.cache/expertmesh"
# Secrets, and what is said of another Ray.
_LEFT_OUT = ("EXPERTMESH_API_KEY", "RAY_ADDRESS")


def node_environment(
    folder: ClusterFolder, membership: Membership, more: Mapping[str, str]
) -> dict[str, str]:
    """Of the process that starts Ray, and so of all that Ray starts."""
    changed = {**folder.environment(membership), **dict.fromkeys(_LEFT_OUT), **more}
    found = {**os.environ, **{name: value for name, value in changed.items() if value is not None}}
    return {name: value for name, value in found.items() if changed.get(name, "") is not None}


def cache_folder() -> Path:
    """Where files of models are kept on this machine."""
    return Path(os.environ.get(CACHE_VARIABLE) or _USUAL_CACHE).expanduser().absolute()
