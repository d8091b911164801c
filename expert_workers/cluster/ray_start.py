"""How a Ray of our own is started, whichever process does: its settings, its files, its processes' groups."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray._private import services as ray_services
from ray._private.utils import detect_fate_sharing_support

from expert_workers.cluster.ray_environment import TOKEN, OwnToken, read_tls, warn_of_open_token
from expert_workers.cluster.ray_tls import RAY_TLS
from expert_workers.tls import check_own

OBJECT_STORE_BYTES = 256 << 20
# Ray's default of 15 lets any other process on the machine starve the workers.
SYSTEM_CONFIG = {"worker_niceness": 0}
# The name by which Ray's launcher of processes is known in its module.
_POPEN = "ConsolePopen"
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def check_environment() -> None:
    """What the environment asks of a Ray that is ours can be had. Raises ConfigError."""
    warn_of_open_token()
    if (tls := read_tls()) is not None:
        address = str(ray_services.get_node_ip_address())  # type: ignore[no-untyped-call]
        check_own(tls, address, what=RAY_TLS)


def own_environment(token: OwnToken) -> dict[str, str | None]:
    """What its processes shall have of the environment, and what not."""
    return {
        **token.environment,
        TOKEN: None,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's own processes do not start without the texts that this takes out of them.
        "PYTHONOPTIMIZE": None,
    }


@contextmanager
def signals_kept() -> Iterator[None]:
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
def own_process_groups() -> Iterator[None]:
    """Keeps a signal that is meant for us and sent to our process group from ending Ray under our feet.

    Only where the kernel ends Ray's processes with us; elsewhere Ray finds them by our group.
    """
    popen = ray_services.ConsolePopen
    group: Any = {"process_group": 0} if detect_fate_sharing_support() else {}  # type: ignore[no-untyped-call]
    setattr(ray_services, _POPEN, partial(_launched, popen, **group))
    try:
        yield
    finally:
        setattr(ray_services, _POPEN, popen)


def _launched(popen: Any, *args: Any, preexec_fn: Callable[[], None], **options: Any) -> Any:
    """A process that hears the signals which this one may have blocked."""

    def begin() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        preexec_fn()

    return popen(*args, preexec_fn=begin, **options)


@contextmanager
def private_files() -> Iterator[None]:
    """Ray makes its logs and sockets for all to read."""
    old = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(old)
