"""The process that starts a machine's Ray node and then becomes its keeper:
`python -P -m expert_workers.machines.node_process CHANNEL FOLDER`.

It reads a NodeSpec from the channel, and says there how it went.
"""

import json
import os
import shutil
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ray._private.node import Node
from ray._private.parameter import RayParams

from expert_workers.cluster.keeper import end_when_told
from expert_workers.cluster.own_folder import ray_folder
from expert_workers.cluster.ray_environment import changed_environment
from expert_workers.cluster.ray_errors import first_line
from expert_workers.cluster.ray_start import (
    OBJECT_STORE_BYTES,
    SYSTEM_CONFIG,
    own_process_groups,
    private_files,
    signals_kept,
)
from expert_workers.machines.node_spec import NodeSpec, receive_line

# A node that is not heard of counts as dead after some 4 s, and not after a minute. On a busy machine an
# agent of Ray's takes longer to start than Ray allows.
_SYSTEM_CONFIG = {
    **SYSTEM_CONFIG,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "agent_register_timeout_ms": 90_000,
}


# Looked at, as it is where Ray keeps what processes share.
_SHARED = "/dev/shm"  # noqa: S108


def main() -> NoReturn:
    """Turns into the keeper; ends with 1 where Ray does not start."""
    channel, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.set_inheritable(channel, False)
    with socket.socket(fileno=channel) as told:
        spec = NodeSpec.parse(receive_line(told))
        # The library waits for Ray, and can be told nothing meanwhile.
        threading.Thread(target=_end_when_told, args=(told, folder), daemon=True).start()
        try:
            start(spec, folder)
        except Exception as error:  # noqa: BLE001 - Ray raises bare ones, as for a node that does not start
            _say(told, {"failed": first_line(error)})
            os._exit(1)
        _say(told, {"failed": ""})
        os.set_inheritable(channel, True)
        keeper = [sys.executable, "-P", "-m", "expert_workers.cluster.keeper", str(channel), str(folder)]
        os.execv(keeper[0], keeper)  # noqa: S606 - our own interpreter, no shell


def start(spec: NodeSpec, folder: Path) -> None:
    """Raises whatever Ray raises. Call it on the main thread: the kernel ends Ray with it."""
    # Of a head: what workers print is read by no driver, and no machine comes or goes by a wish of ours.
    of_a_head: dict[str, Any] = {"no_monitor": True, "_system_config": _SYSTEM_CONFIG} if spec.is_head else {}
    host, _, port = spec.head.rpartition(":")
    first = spec.ports.first
    settings: dict[str, Any] = {
        "gcs_server_port": int(port) if spec.is_head else None,
        "gcs_address": None if spec.is_head else f"{host}:{port}",
        "include_log_monitor": False,
        **of_a_head,
    }
    params = RayParams(
        node_ip_address=spec.address,
        node_manager_port=first,
        object_manager_port=first + 1,
        runtime_env_agent_port=first + 2,
        metrics_export_port=first + 3,
        metrics_agent_port=first + 4,
        dashboard_agent_listen_port=first + 5,
        min_worker_port=spec.ports.workers.first,
        max_worker_port=spec.ports.workers.last,
        num_cpus=spec.num_cpus,
        temp_dir=str(ray_folder(folder)),
        object_store_memory=OBJECT_STORE_BYTES,
        # Where that is too small, as in containers, Ray would use a folder that is open to others.
        plasma_directory=None if _has_room(_SHARED) else str(folder),
        include_dashboard=False,
        **settings,
    )
    with (
        changed_environment({"RAY_USAGE_STATS_ENABLED": "0", "PYTHONOPTIMIZE": None}),
        signals_kept(),
        private_files(),
        own_process_groups(),
    ):
        Node(params, head=spec.is_head, shutdown_at_exit=False, spawn_reaper=True)


def _has_room(place: str) -> bool:
    try:
        return shutil.disk_usage(place).free >= OBJECT_STORE_BYTES
    except OSError:
        return False


def _say(told: socket.socket, what: dict[str, str]) -> None:
    with suppress(ConnectionError):
        told.sendall(json.dumps(what).encode() + b"\n")


def _end_when_told(told: socket.socket, folder: Path) -> None:
    """Until the keeper does the same; what is started meanwhile, the kernel ends with this process."""
    os._exit(end_when_told(told, folder))


if __name__ == "__main__":
    main()
