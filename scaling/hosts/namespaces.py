"""Hosts on one machine: network namespaces around a router, so that a fault happens on the wire between them.

A `Network` is a router in a namespace of its own. Each `Host` is a namespace with one cable to it, and so is
this process itself, which can dial every host. Nothing else can be reached from a host. The names of
everything hold the pid of this process: a later run takes away what a killed one has left."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from scaling.hosts.groups import HostGroup
from scaling.hosts.left_over import END_TIMEOUT, RUN_NETNS, kill_all_in, pids_in, run, sweep
from scaling.hosts.relay import Relay

# Reserved for benchmarks of networks (RFC 2544), so that no other network has these addresses.
SUBNETS = [f"198.{18 + high}.{low}" for high in range(2) for low in range(256)]


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
        run("nsenter", f"--net={RUN_NETNS / name}", "iptables", "-w", "-L", "-n")
    except RuntimeError as error:
        return f"no firewall rules in a network namespace: {error}"
    finally:
        run("ip", "netns", "del", name)
    return ""


class Namespace:
    """A network namespace and the processes in it, which end with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = RUN_NETNS / name
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
            self._entering(self.command(*command)),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=env,
            start_new_session=True,
        )
        self._children.append(process)
        return process

    def _entering(self, command: list[str]) -> list[str]:
        return command

    def pids(self) -> set[int]:
        """All that runs in here, whatever its parent is; no zombies."""
        return pids_in(self._path)

    def kill_all(self) -> None:
        """SIGKILL to whatever runs in here, which also ends what is stopped; returns when it is gone."""
        for process in self._children:
            # It may not even have arrived in here.
            process.kill()
        kill_all_in(self._path)
        for process in self._children:
            process.wait(END_TIMEOUT)
            if process.stdout is not None:
                process.stdout.close()
        self._children.clear()

    def close(self) -> None:
        self.kill_all()
        run("ip", "netns", "del", self.name)


class Host(Namespace):
    """A namespace with an address, and its cable: `device` at its own end, `port` at the router's. What
    `popen` starts is in its `group`, where it has one."""

    def __init__(self, network: "Network", name: str, address: str, port: str) -> None:
        super().__init__(name)
        self.network = network
        self.address = address
        self.device = "eth0"
        self.port = port
        self.relay: Relay | None = None
        self.group: HostGroup | None = None

    def cap(self, cores: float | None, memory_mb: float | None) -> None:
        """What the host has from now on; None: no limit. RuntimeError where this machine cannot limit it.

        What was started before the first call is not held to it.
        """
        if self.group is None:
            self.group = HostGroup(self.name)
            # A group counts as one process otherwise, however many threads its workers have.
            self.group.weigh(os.cpu_count() or 1)
        self.group.limit_cores(cores)
        self.group.limit_memory(memory_mb)

    def close(self) -> None:
        with ExitStack() as stack:
            if self.group is not None:
                stack.callback(self.group.close)
            stack.callback(super().close)
            if self.relay is not None:
                stack.callback(self.relay.close)

    def _entering(self, command: list[str]) -> list[str]:
        return command if self.group is None else self.group.entering(command)


class Network:
    """A router and the hosts around it. A context manager."""

    def __init__(self) -> None:
        sweep()
        self.prefix = _free_prefix()
        self.subnet = _free_subnet()
        self._device = f"{self.prefix}-s"
        self.hosts: dict[str, Host] = {}
        self.router = Namespace(f"{self.prefix}-router")
        try:
            self.router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            self._plug_in_itself()
        except BaseException:
            self.close()
            raise

    @property
    def gateway(self) -> str:
        return f"{self.subnet}.1"

    @property
    def own_address(self) -> str:
        """This process's, from which it dials the hosts."""
        return f"{self.subnet}.254"

    def host(self, name: str, *, is_relayed: bool = False) -> Host:
        """A new host. With `is_relayed` its cable is a Relay, which can delay what it carries.

        A name has at most six letters, as the name of a device does not hold more.
        """
        address = f"{self.subnet}.{2 + len(self.hosts)}"
        host = Host(self, f"{self.prefix}-{name}", address, f"to-{name}")
        self.hosts[name] = host
        self._lay_cable(host, is_relayed)
        return host

    def change_cable(self, host: Host, *, is_relayed: bool) -> None:
        """Another kind of cable between the same ends: connections that are there live on, as after a moment
        without it. What Faults there are of the old cable must be healed before."""
        if (host.relay is not None) == is_relayed:
            return
        if host.relay is not None:
            host.relay.close()
            host.relay = None
        else:
            _ip(self.router.name, f"link del {host.port}")
        self._lay_cable(host, is_relayed)

    def _lay_cable(self, host: Host, is_relayed: bool) -> None:
        if is_relayed:
            host.relay = Relay(self.router.name, host.port, host.name, host.device)
        else:
            _ip(
                self.router.name,
                f"link add {host.port} type veth peer name {host.device} netns {host.name}",
            )
        _ip(
            host.name,
            f"addr add {host.address}/32 dev {host.device}",
            f"link set {host.device} up",
            f"route add {self.gateway} dev {host.device}",
            f"route add {self.subnet}.0/24 via {self.gateway} src {host.address}",
        )
        self.plug_in(host)

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
                if (RUN_NETNS / namespace.name).exists():
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

    def _plug_in_itself(self) -> None:
        here, port = self._device, "to-self"
        run("ip", "link", "add", here, "type", "veth", "peer", "name", port, "netns", self.router.name)
        _ip(
            self.router.name,
            f"addr add {self.gateway}/32 dev {port}",
            f"link set {port} up",
            f"route add {self.own_address} dev {port}",
        )
        run("ip", "addr", "add", f"{self.own_address}/32", "dev", here)
        run("ip", "link", "set", here, "up")
        route = f"route add {self.subnet}.0/24 via {self.gateway} dev {here} onlink src {self.own_address}"
        run("ip", *route.split())


def _ip(namespace: str, *commands: str) -> None:
    """Several commands of `ip` at the price of one process."""
    run("ip", "-n", namespace, "-batch", "-", stdin="\n".join(commands))


def _free_prefix() -> str:
    """The least number that no network of this process has: a device's name has at most 15 letters."""
    prefixes = (f"emx{os.getpid()}-{number}" for number in itertools.count(1))
    return next(each for each in prefixes if not (RUN_NETNS / f"{each}-router").exists())


def _free_subnet() -> str:
    """One that no device of this machine has; begins to look at a place of its own for each process."""
    taken = run("ip", "-4", "-o", "addr", "show")
    start = os.getpid() % len(SUBNETS)
    return next(net for net in SUBNETS[start:] + SUBNETS[:start] if f"{net}." not in taken)
