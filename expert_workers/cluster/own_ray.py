"""A Ray of our own that outlives the engine: started by one process, kept by what that process becomes.

Ray's library is needed for the start only, and large. So the process that has started Ray is then replaced by
keeper.py, with the same pid, which Ray's processes end with.
"""

from pathlib import Path
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams

from expert_workers.cluster.own_folder import ray_folder
from expert_workers.cluster.place import RayPlace
from expert_workers.cluster.ray_environment import (
    OwnToken,
    changed_environment,
)
from expert_workers.cluster.ray_errors import first_line
from expert_workers.cluster.ray_start import (
    OBJECT_STORE_BYTES,
    SYSTEM_CONFIG,
    check_environment,
    own_environment,
    own_process_groups,
    private_files,
    signals_kept,
)
from moe_model.errors import ClusterError


def start_own_ray(folder: Path) -> RayPlace:
    """Starts a head without a driver, with all its files in an OwnFolder of another process. Call it on the
    main thread: the kernel ends Ray with it. Raises ClusterError, ConfigError."""
    check_environment()
    token = OwnToken(folder)
    # What its annotations say of some of these is not so.
    settings: dict[str, Any] = {
        # What workers print is read by no driver, and no machine comes or goes by a wish of ours.
        "include_log_monitor": False,
        "no_monitor": True,
        "_system_config": SYSTEM_CONFIG,
    }
    params = RayParams(
        temp_dir=str(ray_folder(folder)),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        **settings,
    )
    try:
        with (
            changed_environment(own_environment(token)),
            signals_kept(),
            private_files(),
            own_process_groups(),
        ):
            node = Node(params, head=True, shutdown_at_exit=False, spawn_reaper=True, ray_init_cluster=True)
    except Exception as error:  # noqa: BLE001 - Ray raises bare ones, as for a node that does not start
        raise ClusterError(f"Ray at local cannot be used: {first_line(error)}") from None
    return RayPlace(str(node.gcs_address), token.environment)
