"""RayCluster: the connection to Ray, and the local cluster when we are the ones to start it.

Knows no experts. What `start_local` started, `close` ends: processes, temporary files and all.
"""

import atexit
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import ray
from ray._private import services as ray_services
from ray._private import worker as ray_private_worker
from ray.job_config import JobConfig

from expert_workers.cluster.own_folder import OwnFolder
from expert_workers.cluster.place import RayPlace
from expert_workers.cluster.ray_environment import (
    TOKEN,
    OwnToken,
    RayAccess,
    changed_environment,
    read_again,
)
from expert_workers.cluster.ray_errors import first_line
from expert_workers.cluster.ray_preflight import preflight
from expert_workers.cluster.ray_start import (
    OBJECT_STORE_BYTES,
    SYSTEM_CONFIG,
    check_environment,
    own_environment,
    own_process_groups,
    private_files,
    signals_kept,
)
from expert_workers.processes import descendants, kill_and_wait
from moe_model.errors import ClusterError

NAMESPACE = "expertmesh"
_CONNECT_TIMEOUT = 3.0
_END_TIMEOUT = 10.0

_log = logging.getLogger(__name__)


class RayCluster:
    """A process has at most one. Make it with `start_local` or `connect`."""

    def __init__(
        self,
        address: str,
        own: OwnFolder | None = None,
        token: OwnToken | None = None,
        *,
        is_ours: bool = False,
    ) -> None:
        """`is_ours`: it let this process in with what is not this process's own environment."""
        self.address = address
        self._own = own
        self._token = token
        self._is_ours = is_ours or own is not None
        self._is_open = True

    @property
    def folder(self) -> Path | None:
        """Where a cluster of our own has all its files; closed to others."""
        return None if self._own is None else self._own.path

    @property
    def environment(self) -> dict[str, str]:
        """What another process of this user needs to join a cluster of our own: a path, and no secret."""
        return {} if self._token is None else self._token.environment

    @classmethod
    def start_local(
        cls,
        *,
        num_cpus: int | None = None,
        object_store_bytes: int = OBJECT_STORE_BYTES,
        hidden: Sequence[str] = (),
    ) -> Self:
        """Starts a Ray of our own on this machine, which ends with us. Raises ClusterError, ConfigError.

        It wants a token of its own; `hidden` are variables of the environment that its processes shall not
        get. On Linux the kernel ends it with the thread that started it: call this from one that
        stays.
        """
        _require_none()
        check_environment()
        own = OwnFolder()
        try:
            token = OwnToken(own.path)
            with changed_environment(own_environment(token) | dict.fromkeys(hidden)):
                address = _init(
                    address="local",
                    _temp_dir=str(own.ray),
                    num_cpus=num_cpus,
                    object_store_memory=object_store_bytes,
                    include_dashboard=False,
                    _system_config=SYSTEM_CONFIG,
                )
        except BaseException:
            own.remove()
            read_again()
            raise
        return cls(address, own, token)

    @classmethod
    def join(cls, place: RayPlace) -> Self:
        """Joins a Ray of our own that another process of ours keeps. Raises ClusterError."""
        _require_none()
        with changed_environment({**place.environment, TOKEN: None}):
            return cls(_init(address=place.address), is_ours=True)

    @classmethod
    def connect(cls, address: str, *, insecure: bool = False) -> Self:
        """Joins the Ray at HOST:PORT, or at "auto" this machine's. Raises ClusterError, ConfigError.

        What stands against it is told within 5 seconds. A cluster without token authentication is used only
        on this machine, unless `insecure`.
        """
        where = preflighted(address, insecure=insecure)
        _require_none()
        read_again()
        return cls(_init(address=where))

    def close(self) -> None:
        """Disconnects; ends the local cluster if it is ours. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        # Ray's shutdown ends these, stopped ones too; but there may be no Ray left that could.
        ours = descendants(os.getpid(), "raylet") if self._own else frozenset()
        if is_reachable():
            ray.shutdown(wait_for_processes=True)
        else:
            # Without its head, Ray's shutdown waits for a minute and then aborts the process.
            _log.error("Ray at %s is gone: leaving without saying goodbye", self.address)
            atexit.unregister(ray_private_worker.shutdown)
        if self._is_ours:
            read_again()
        if self._own is None:
            return
        left = kill_and_wait(ours, _END_TIMEOUT)
        if left:
            _log.error("still running after SIGKILL: %s", ", ".join(str(process.pid) for process in left))
        self._own.remove()


def is_reachable() -> bool:
    """Whether the head of the Ray that this process is connected to still listens."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True


class _OwnPaths(JobConfig):
    """Leaves the workers' module path as their own interpreter has it.

    Ray would put the driver's working folder and its script's first: a folder of the user's that is called as
    one of our packages would be loaded in its place. A job that brings a folder of its own is spared that.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def _require_none() -> None:
    if ray.is_initialized():
        raise ClusterError("this process is already connected to a Ray cluster")


def _init(**options: Any) -> str:
    # Ray prints the deaths of workers on stdout, which is ours; its debugger knows this one switch.
    ray_private_worker._worker_logs_enabled = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with signals_kept(), private_files(), own_process_groups():
            ray.init(
                namespace=NAMESPACE,
                job_config=_OwnPaths(),
                log_to_driver=False,
                configure_logging=False,
                **options,
            )
    except Exception as error:  # noqa: BLE001 - Ray raises bare ones, as for a node that does not start
        ray.shutdown()
        raise ClusterError(f"Ray at {options['address']} cannot be used: {first_line(error)}") from None
    return str(ray.get_runtime_context().gcs_address)


def preflighted(address: str, *, insecure: bool) -> str:
    """HOST:PORT of the Ray at such an address, or of this machine's at "auto", once it is known to let this
    process in. Raises ClusterError, ConfigError."""
    host, port = _resolve(address)
    preflight(address, host, port, RayAccess.read(), insecure=insecure)
    return f"{host}:{port}"


def _resolve(address: str) -> tuple[str, int]:
    try:
        found = ray_services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError) as error:
        raise ClusterError(f"Ray address {address}: {first_line(error)}") from None
    host, _, port = (found or "").rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ClusterError(f"Ray address {address}: expected HOST:PORT or auto")
    return host.strip("[]"), int(port)
