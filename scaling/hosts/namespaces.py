"""Hosts on one machine: network namespaces around a router, so that a fault happens on the wire between them.

A `Network` is a router in a namespace of its own. Each `Host` is a namespace with one cable to it, and so is
this process itself, which can dial every host. Nothing else can be reached from a host. The names of
everything hold the pid of the test's process: a later run takes away what a killed one has left."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from scaling.hosts.relay import Relay

# Reserved for tests between networks (RFC 2544), so that nobody else uses these addresses.
SUBNETS = [f"198.{18 + high}.{low}" for high in range(2) for low in range(256)]
_NAMES = re.compile(r"\bemx([0-9]+)-[\w-]+")
_RUN_NETNS = Path("/run/netns")
_numbers = itertools.count(1)
_TIMEOUT = 30.0
_END_TIMEOUT = 10.0


def run(*command: str, stdin: str | None = None) -> str:
    """Runs a command to its end; its output. Raises RuntimeError with what it said when it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@cache
def missing_capability() -> str:
    """What this machine lacks for a Network, in one line; empty where one can be made."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    commands = ("ip", "tc", "nsenter", "iptables", "iptables-restore")
    absent = [command for command in commands if shutil.which(command) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "no /dev/net/tun"
    name = f"emx{os.getpid()}-probe"
    try:
        run("ip", "netns", "add", name)
    except RuntimeError as error:
        return f"no network namespace can be made: {error}"
    try:
        run("nsenter", f"--net={_RUN_NETNS / name}", "iptables", "-w", "-L", "-n")
    except RuntimeError as error:
        return f"no firewall rules in a network namespace: {error}"
    finally:
        run("ip", "netns", "del", name)
    return ""


class Namespace:
    """A network namespace and the processes in it, which end with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = _RUN_NETNS / name
        self._children: list[subprocess.Popen[Any]] = []
        run("ip", "netns", "add", name)
        # In a namespace whose loopback device is down, Ray's actors hang without an error.
        run("ip", "-n", name, "link", "set", "lo", "up")

    def command(self, *command: str) -> list[str]:
        """The command line that runs a command in here, in the process that is started and no other."""
        return ["nsenter", f"--net={self._path}", "--", *command]

    def run(self, *command: str, stdin: str | None = None) -> str:
        return run(*self.command(*command), stdin=stdin)

    def popen(
        self,
        *command: str,
        stdout: int | IO[Any] | None = subprocess.DEVNULL,
        stderr: int | IO[Any] | None = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=env,
            start_new_session=True,
        )
        self._children.append(process)
        return process

    def pids(self) -> set[int]:
        """All that runs in here, whoever its parent is; no zombies."""
        return pids_in(self._path)

    def kill_all(self) -> None:
        """SIGKILL to whatever runs in here, which also ends what is stopped; returns when it is gone."""
        for process in self._children:
            # It may not even have arrived in here.
            process.kill()
        kill_all_in(self._path)
        for process in self._children:
            process.wait(_END_TIMEOUT)
            if process.stdout is not None:
                process.stdout.close()
        self._children.clear()

    def close(self) -> None:
        self.kill_all()
        run("ip", "netns", "del", self.name)


class Host(Namespace):
    """A namespace with an address, and its cable: `device` at its own end, `port` at the router's."""

    def __init__(self, network: "Network", name: str, address: str, port: str) -> None:
        super().__init__(name)
        self.network = network
        self.address = address
        self.device = "eth0"
        self.port = port
        self.relay: Relay | None = None

    def close(self) -> None:
        if self.relay is not None:
            self.relay.close()
        super().close()


class Network:
    """A router and the hosts around it. A context manager."""

    def __init__(self) -> None:
        sweep()
        self.prefix = f"emx{os.getpid()}-{next(_numbers)}"
        self.subnet = _free_subnet()
        self._device = f"{self.prefix}-t"
        self.hosts: dict[str, Host] = {}
        self.router = Namespace(f"{self.prefix}-router")
        try:
            self.router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            self._plug_in_the_test()
        except BaseException:
            self.close()
            raise

    @property
    def gateway(self) -> str:
        return f"{self.subnet}.1"

    @property
    def test_address(self) -> str:
        """The test's own address, from which it dials the hosts."""
        return f"{self.subnet}.254"

    def host(self, name: str, *, is_relayed: bool = False) -> Host:
        """A new host. With `is_relayed` its cable is a Relay, which can delay what it carries.

        A name has at most six letters, as the name of a device does not hold more.
        """
        address = f"{self.subnet}.{2 + len(self.hosts)}"
        host = Host(self, f"{self.prefix}-{name}", address, f"to-{name}")
        self.hosts[name] = host
        if is_relayed:
            host.relay = Relay(self.router.name, host.port, host.name, host.device)
        else:
            _ip(
                self.router.name,
                f"link add {host.port} type veth peer name {host.device} netns {host.name}",
            )
        _ip(
            host.name,
            f"addr add {address}/32 dev {host.device}",
            f"link set {host.device} up",
            f"route add {self.gateway} dev {host.device}",
            f"route add {self.subnet}.0/24 via {self.gateway} src {address}",
        )
        self.plug_in(host)
        return host

    def plug_in(self, host: Host) -> None:
        """Brings the router's end of a cable up. The route goes when that end goes down."""
        _ip(
            self.router.name,
            f"addr replace {self.gateway}/32 dev {host.port}",
            f"link set {host.port} up",
            f"route replace {host.address} dev {host.port}",
        )

    def close(self) -> None:
        """Ends everything, in whatever state it is. Idempotent."""
        hosts, self.hosts = self.hosts, {}
        # One that cannot be ended keeps none of the others from its end.
        with ExitStack() as stack:
            for namespace in (self.router, *hosts.values()):
                if (_RUN_NETNS / namespace.name).exists():
                    stack.callback(namespace.close)
            # The kernel would take it away with the router, but some time later.
            if Path("/sys/class/net", self._device).exists():
                stack.callback(run, "ip", "link", "del", self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plug_in_the_test(self) -> None:
        here, port = self._device, "to-test"
        run("ip", "link", "add", here, "type", "veth", "peer", "name", port, "netns", self.router.name)
        _ip(
            self.router.name,
            f"addr add {self.gateway}/32 dev {port}",
            f"link set {port} up",
            f"route add {self.test_address} dev {port}",
        )
        run("ip", "addr", "add", f"{self.test_address}/32", "dev", here)
        run("ip", "link", "set", here, "up")
        route = f"route add {self.subnet}.0/24 via {self.gateway} dev {here} onlink src {self.test_address}"
        run("ip", *route.split())


def sweep() -> list[str]:
    """Takes away what killed runs have left: namespaces, all that runs in them, devices, folders.

    Returns their names. Runs whose process is there are let alone.
    """
    devices, folders = Path("/sys/class/net"), short_temp_dir()
    left = [path for place in (_RUN_NETNS, devices, folders) for path in sorted(place.glob("emx*-*"))]
    left = [path for path in left if _is_left_over(path.name)]
    for path in left:
        # Another run may be sweeping too, and devices go with their namespace.
        with suppress(RuntimeError, FileNotFoundError):
            if path.parent == _RUN_NETNS:
                kill_all_in(path)
                run("ip", "netns", "del", path.name)
            elif path.parent == devices:
                run("ip", "link", "del", path.name)
            else:
                shutil.rmtree(path)
    return [path.name for path in left]


def short_temp_dir() -> Path:
    """Where folders for sockets can be made, whose paths may have 107 bytes."""
    parent = Path(tempfile.gettempdir())
    return parent if len(str(parent)) < 30 else Path("/tmp")


def pids_in(namespace: Path) -> set[int]:
    wanted = namespace.stat()
    found = set()
    for name in os.listdir("/proc"):
        # It may end while we look, and a zombie is in no namespace.
        with suppress(OSError):
            if name.isdigit():
                its = os.stat(f"/proc/{name}/ns/net")
                if (its.st_dev, its.st_ino) == (wanted.st_dev, wanted.st_ino):
                    found.add(int(name))
    return found


def kill_all_in(namespace: Path) -> None:
    """SIGKILL, and again for what was born meanwhile, until nothing runs in there."""
    deadline = time.monotonic() + _END_TIMEOUT
    while pids := pids_in(namespace):
        if time.monotonic() > deadline:
            raise RuntimeError(f"still running in {namespace.name} after SIGKILL: {sorted(pids)}")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _is_left_over(name: str) -> bool:
    found = _NAMES.fullmatch(name)
    return found is not None and not Path(f"/proc/{found[1]}").exists()


def _ip(namespace: str, *commands: str) -> None:
    """Several commands of `ip` at the price of one process."""
    run("ip", "-n", namespace, "-batch", "-", stdin="\n".join(commands))


def _free_subnet() -> str:
    """One that no device of this machine has; begins to look at a place of its own for each process."""
    taken = run("ip", "-4", "-o", "addr", "show")
    start = os.getpid() % len(SUBNETS)
    return next(net for net in SUBNETS[start:] + SUBNETS[:start] if f"{net}." not in taken)
