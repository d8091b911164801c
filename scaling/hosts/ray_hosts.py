"""A real Ray cluster over the hosts of a Network: a head, and a node on each of the others.

As deployments do it: `ray start --block` on each, with a token, pinned ports, no dashboard. When Ray's raylet
ends, so does that command and all of its node; what supervises it starts it anew: here, the caller.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaling.hosts.left_over import short_temp_dir
from scaling.hosts.namespaces import Host

PORT = 6379
START_TIMEOUT = 100.0
_RAY = (sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
_STARTED = "This command will now block forever"
# Each host has all ports for itself.
_PORTS = {
    "node-manager-port": 6380,
    "object-manager-port": 6381,
    "ray-client-server-port": 6382,
    "runtime-env-agent-port": 6383,
    "dashboard-agent-grpc-port": 6384,
    "dashboard-agent-listen-port": 6385,
    "metrics-export-port": 6386,
    "min-worker-port": 6400,
    "max-worker-port": 6499,
}
# Ray's default niceness of 15 lets any other process on the machine starve the workers. And a node ends
# itself when an agent of its own has not started in time, for which Ray allows too little on a busy machine.
# And no processes of Python for tasks: on a host with a part of a core their start takes all of it for long.
_SYSTEM_CONFIG = {
    "worker_niceness": 0,
    "agent_register_timeout_ms": 90_000,
    "prestart_worker_first_driver": False,
}
# A node also gives up when its raylet is not there after 30 s, and no option changes that.
_ATTEMPTS = 3
# A node that is not heard of counts as dead after some 4 s, and not after a minute.
QUICK_HEALTH_CHECKS = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
_NODES = """
import json, sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10.0).values()
print(json.dumps([[node.node_manager_address, int(node.state) == 0] for node in nodes]))
"""


# In a mount namespace of its own, with an empty folder over the one that is named first.
_HIDING = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')


class RayHosts:
    """A context manager: it has started when its block begins, and is gone with all its files after it."""

    def __init__(
        self,
        head: Host,
        workers: Sequence[Host],
        *,
        num_head_cpus: int = 0,
        num_worker_cpus: int = 1,
        system_config: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        hidden: Path | None = None,
    ) -> None:
        """`env` is for every process of Ray, and for drivers; workers find nothing in the folder `hidden`,
        and keep what they fetch in a cache of their own."""
        self.head = head
        self.workers = tuple(workers)
        self.address = f"{head.address}:{PORT}"
        self._num_cpus = {head: num_head_cpus, **dict.fromkeys(workers, num_worker_cpus)}
        self._system_config = {**_SYSTEM_CONFIG, **(system_config or {})}
        self._folder = Path(tempfile.mkdtemp(prefix=f"{head.network.prefix}-", dir=short_temp_dir()))
        token = self._folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        # What the environment says of Ray and of proxies is about another cluster and another network.
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and "proxy" not in k.lower()}
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.env = {**kept, **auth, **(env or {})}
        self._hidden = hidden
        self._commands: dict[Host, subprocess.Popen[bytes]] = {}

    def cache(self, host: Host) -> Path:
        """Where a worker's host keeps what it has fetched."""
        return self._folder / f"{host.name}-cache"

    def __enter__(self) -> Self:
        try:
            self._launch(self.head)
            # The others can be on their way meanwhile: all they need of the head is that it listens.
            wait_until(lambda: self._can_be_joined() or not self.is_up(self.head), START_TIMEOUT, "no head")
            for host in self.workers:
                self._launch(host)
            for host in (self.head, *self.workers):
                self._wait_started(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent. Also ends whatever else runs on these hosts."""
        try:
            for host in (*self.workers, self.head):
                host.kill_all()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def raylet(self, host: Host) -> int:
        """The pid of a host's raylet."""
        (pid,) = pids_of(host, "raylet")
        return pid

    def kill_raylet(self, host: Host) -> None:
        os.kill(self.raylet(host), signal.SIGKILL)

    def is_up(self, host: Host) -> bool:
        """Whether the node's command still runs; it is not asked what the head thinks of it."""
        return self._commands[host].poll() is None

    def is_started(self, host: Host) -> bool:
        """Whether the node's command runs and the head knows the node."""
        return self.is_up(host) and _STARTED in self.log(host)

    def wait_down(self, host: Host, timeout: float) -> float:
        """Seconds until the node's command ended by itself."""
        started = time.monotonic()
        wait_until(lambda: not self.is_up(host), timeout, f"{host.name}: Ray's node has not ended")
        return time.monotonic() - started

    def restart(self, host: Host) -> float:
        """Ends what is left of a node and starts a new one, as a supervisor would; seconds it took."""
        started = time.monotonic()
        host.kill_all()
        self._launch(host)
        self._wait_started(host)
        return time.monotonic() - started

    @contextmanager
    def supervised(self) -> Iterator[list[Host]]:
        """Starts each node anew that ends, as systemd or the kubelet would; gives the hosts where it did.

        A host that cannot reach the head fails to start, and is tried again.
        """
        restarts: list[Host] = []
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(0.1):
                for host in self.workers:
                    if not self.is_up(host):
                        host.kill_all()
                        self._launch(host)
                        restarts.append(host)

        thread = threading.Thread(target=watch, name="supervisor")
        thread.start()
        try:
            yield restarts
        finally:
            is_over.set()
            thread.join()

    def nodes(self) -> list[tuple[str, bool]]:
        """The address of each node there ever was, and whether the head takes it for alive."""
        command = self.head.command(sys.executable, "-c", _NODES, self.address)
        done = subprocess.run(command, capture_output=True, text=True, env=self.env, timeout=30, check=True)
        return [(address, is_alive) for address, is_alive in json.loads(done.stdout)]

    def log(self, host: Host) -> str:
        """What the node's command said."""
        return self._log(host).read_text(encoding="utf-8", errors="replace")

    def raylet_log(self, host: Host) -> str:
        found = self._folder.glob(f"{self._folder_of(host).name}/session_latest/logs/raylet.*")
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(found))

    def _can_be_joined(self) -> bool:
        with suppress(OSError), socket.create_connection((self.head.address, PORT), 1.0):
            return True
        return False

    def _folder_of(self, host: Host) -> Path:
        return self._folder / host.name.rpartition("-")[2]

    def _log(self, host: Host) -> Path:
        return self._folder / f"{host.name}.log"

    def _launch(self, host: Host) -> None:
        options = {
            **_PORTS,
            "node-ip-address": host.address,
            "temp-dir": self._folder_of(host),
            "num-cpus": self._num_cpus[host],
            "object-store-memory": 80_000_000,
            "include-log-monitor": "false",
        }
        command = [*_RAY]
        if host is self.head:
            command += ["--head", "--include-dashboard=false", "--no-monitor", f"--port={PORT}"]
            command += [f"--system-config={json.dumps(self._system_config)}"]
        else:
            del options["ray-client-server-port"]
            command += [f"--address={self.address}"]
        command += [f"--{name}={value}" for name, value in options.items()]
        env = {**self.env, "EXPERTMESH_CACHE": str(self.cache(host))}
        if self._hidden is not None and host is not self.head:
            command = [*_HIDING, str(self._hidden), *command]
        with self._log(host).open("wb") as log:
            self._commands[host] = host.popen(*command, stdout=log, stderr=subprocess.STDOUT, env=env)

    def _wait_started(self, host: Host) -> None:
        """Starts a node again that has given up, as a supervisor would; AssertionError with its words."""

        def is_settled() -> bool:
            return self.is_started(host) or not self.is_up(host)

        for attempt in range(_ATTEMPTS):
            if attempt > 0:
                host.kill_all()
                self._launch(host)
            wait_until(is_settled, START_TIMEOUT, f"{host.name}: no Ray")
            if self.is_up(host):
                return
        said = f"{self.raylet_log(host)[-3000:]}\n{self.log(host)[-1500:]}"
        raise AssertionError(f"{host.name}: Ray did not start:\n{said}")


def pids_of(host: Host, name: str) -> list[int]:
    """The processes of this name on a host; Ray names a worker's process `ray::` and its actor's class."""
    found = []
    for pid in sorted(host.pids()):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if Path(line.split("\0")[0]).name.startswith(name):
            found.append(pid)
    return found


def wait_until(condition: Callable[[], bool], timeout: float, message: str) -> None:
    """Raises TimeoutError with the message."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{message} within {timeout:g} s")
        time.sleep(0.02)
