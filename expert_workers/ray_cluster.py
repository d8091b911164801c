"""RayCluster: the connection to Ray, and the local cluster when we are the ones to start it.

Knows no experts. What `start_local` started, `close` ends: processes, temporary files and all.
"""

import atexit
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import ray
from ray._private import services as ray_services
from ray._private import worker as ray_private_worker
from ray._private.utils import detect_fate_sharing_support

from expert_workers.processes import descendants, kill_and_wait
from expert_workers.ray_transport import first_line
from moe_model.errors import ClusterError

NAMESPACE = "expertmesh"
_OBJECT_STORE_BYTES = 256 << 20
_CONNECT_TIMEOUT = 3.0
_END_TIMEOUT = 10.0
# The HTTP/2 client preface with an empty SETTINGS frame; a server's first frame is one too (RFC 9113, 3.4).
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HTTP2_SETTINGS = 4
# The name by which Ray's launcher of processes is known in its module.
_POPEN = "ConsolePopen"

_log = logging.getLogger(__name__)


class RayCluster:
    """A process has at most one. Make it with `start_local` or `connect`."""

    def __init__(self, address: str, temp_dir: Path | None) -> None:
        self.address = address
        self._temp_dir = temp_dir
        self._is_open = True

    @classmethod
    def start_local(
        cls, *, num_cpus: int | None = None, object_store_bytes: int = _OBJECT_STORE_BYTES
    ) -> Self:
        """Starts a Ray of our own on this machine, which ends with us. Raises ClusterError.

        On Linux the kernel ends it with the thread that started it: call this from one that stays.
        """
        temp_dir = _make_temp_dir()
        try:
            address = _init(
                address="local",
                _temp_dir=str(temp_dir),
                num_cpus=num_cpus,
                object_store_memory=object_store_bytes,
                include_dashboard=False,
                # Ray's default of 15 lets any other process on the machine starve the workers.
                _system_config={"worker_niceness": 0},
            )
        except ClusterError:
            shutil.rmtree(temp_dir, ignore_errors=True)
            raise
        return cls(address, temp_dir)

    @classmethod
    def connect(cls, address: str, *, tls: bool = False) -> Self:
        """Joins the Ray at HOST:PORT, or at "auto" this machine's. ClusterError; soon, if none is there."""
        host, port = _resolve(address)
        _require_grpc_server(address, host, port, tls)
        return cls(_init(address=f"{host}:{port}"), None)

    def close(self) -> None:
        """Disconnects; ends the local cluster if it is ours. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        # Ray's shutdown ends these, stopped ones too; but there may be no Ray left that could.
        ours = descendants(os.getpid(), "raylet") if self._temp_dir else frozenset()
        if is_reachable():
            ray.shutdown(wait_for_processes=True)
        else:
            # Without its head, Ray's shutdown waits for a minute and then aborts the process.
            _log.error("Ray at %s is gone: leaving without saying goodbye", self.address)
            atexit.unregister(ray_private_worker.shutdown)
        if self._temp_dir is None:
            return
        left = kill_and_wait(ours, _END_TIMEOUT)
        if left:
            _log.error("still running after SIGKILL: %s", ", ".join(str(process.pid) for process in left))
        shutil.rmtree(self._temp_dir, ignore_errors=True)


def is_reachable() -> bool:
    """Whether the head of the Ray that this process is connected to still listens."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True


def _init(**options: Any) -> str:
    if ray.is_initialized():
        raise ClusterError("this process is already connected to a Ray cluster")
    # Ray prints the deaths of workers on stdout, which is ours; its debugger knows this one switch.
    ray_private_worker._worker_logs_enabled = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with _signals_kept(), _private_files(), _own_process_groups():
            ray.init(namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **options)
    except Exception as error:  # noqa: BLE001 - Ray raises bare ones, as for a node that does not start
        ray.shutdown()
        hint = "" if options["address"] == "local" else " (if it wants a token, set RAY_AUTH_MODE=token)"
        raise ClusterError(f"Ray at {options['address']} cannot be used: {first_line(error)}{hint}") from None
    return str(ray.get_runtime_context().gcs_address)


def _make_temp_dir() -> Path:
    """Ray puts sockets below this folder, and a socket's path may have 107 bytes, of which Ray takes 65."""
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="em-", dir=parent if len(parent) < 30 else "/tmp"))  # noqa: S108


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Gives SIGTERM back to its handler: ray.init puts its own in the way, and Ray's nodes one more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _own_process_groups() -> Iterator[None]:
    """Keeps a signal that is meant for us and sent to our process group from ending Ray under our feet.

    Only where the kernel ends Ray's processes with us; elsewhere Ray finds them by our group.
    """
    popen = ray_services.ConsolePopen
    if detect_fate_sharing_support():  # type: ignore[no-untyped-call]
        setattr(ray_services, _POPEN, partial(popen, process_group=0))
    try:
        yield
    finally:
        setattr(ray_services, _POPEN, popen)


@contextmanager
def _private_files() -> Iterator[None]:
    """Whoever reads Ray's token may run code on the cluster, and Ray makes that file readable for all."""
    old = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(old)


def _resolve(address: str) -> tuple[str, int]:
    try:
        found = ray_services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError) as error:
        raise ClusterError(f"Ray address {address}: {first_line(error)}") from None
    host, _, port = (found or "").rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ClusterError(f"Ray address {address}: expected HOST:PORT or auto")
    return host.strip("[]"), int(port)


def _require_grpc_server(address: str, host: str, port: int, tls: bool) -> None:
    """Ray itself would try for 80 seconds and then end the process."""
    try:
        with socket.create_connection((host, port), _CONNECT_TIMEOUT) as connection:
            if tls:
                return
            connection.settimeout(_CONNECT_TIMEOUT / 2)
            connection.sendall(_HTTP2_HELLO)
            head = connection.recv(9, socket.MSG_WAITALL)
    except (OSError, OverflowError) as error:
        raise ClusterError(f"Ray at {address} cannot be reached: {first_line(error)}") from None
    if len(head) < 9 or head[3] != _HTTP2_SETTINGS:
        raise ClusterError(f"Ray at {address} cannot be used: something else listens there")
