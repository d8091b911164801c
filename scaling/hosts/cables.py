"""The cables of hosts as a cell's links say: what they carry a second, how long it takes, what is lost.

What a cable always does is no fault, but it is done by the same means.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from scaling.hosts.left_over import run
from scaling.hosts.links import Bandwidth, Fault, loss
from scaling.hosts.namespaces import Host, Network
from scaling.hosts.relay import Relay
from scaling.link import Link

# So much of a limited cable may go at once, as the kernel's timers are no finer; at least two packets.
_BURST_SECONDS, _MIN_BURST_BYTES = 2e-4, 3_200
_GIGABIT = 1e9
# A frame of many packets is lost whole: where packets are to be lost, senders make one frame of each.
_ANY_NUM_SEGMENTS = 65_535


class Cables:
    """A context manager: at its end all cables are plain again."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._links: dict[Host, Link] = {}
        self._acting: dict[Host, ExitStack] = {}
        self._are_cut_up = False

    def set(self, links: Mapping[Host, Link]) -> None:
        """From now on; hosts that are not named have plain cables. RuntimeError where it cannot be done."""
        wanted = {host: links.get(host, Link()) for host in self._network.hosts.values()}
        changed = [host for host in wanted if wanted[host] != self._links.get(host, Link())]
        for host in changed:
            self._links.pop(host, None)
            self._acting.pop(host, ExitStack()).close()
        self._cut_up(any(link.loss_percent for link in wanted.values()))
        for host in changed:
            self._network.change_cable(host, is_relayed=wanted[host].delay_ms > 0)
            if self._are_cut_up:
                _set_num_segments(host, 1)
            self._acting[host] = _act(host, wanted[host])
            self._links[host] = wanted[host]

    def close(self) -> None:
        """Idempotent."""
        self.set({})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut_up(self, are_cut_up: bool) -> None:
        if are_cut_up != self._are_cut_up:
            for host in self._network.hosts.values():
                _set_num_segments(host, 1 if are_cut_up else _ANY_NUM_SEGMENTS)
            self._are_cut_up = are_cut_up


class SlowRelay(Fault):
    """A relay that delays what it carries, and carries so many bits a second; None: as many as it can. Counts
    frames."""

    def __init__(self, host: Host, seconds: float, bits_per_second: float | None) -> None:
        super().__init__(f"relay at {host.name}")
        assert host.relay is not None, f"{host.name} has no relay"
        self._relay: Relay = host.relay
        self._settings = (seconds, 0.0, bits_per_second or 0.0)
        self._count_before = 0

    def _begin(self) -> None:
        self._count_before = self._relay.set(*self._settings)

    def _read(self) -> int:
        return self._relay.set(*self._settings) - self._count_before

    def _end(self) -> None:
        self._relay.set(0.0)


def _act(host: Host, link: Link) -> ExitStack:
    """What a link is made of, in force until the stack is closed."""
    faults: list[Fault] = []
    rate = None if link.gbit is None else link.gbit * _GIGABIT
    if host.relay is not None:
        faults.append(SlowRelay(host, link.delay_ms / 1e3, rate))
    elif rate is not None:
        burst = max(_MIN_BURST_BYTES, round(rate * _BURST_SECONDS / 8))
        faults.append(Bandwidth(host, round(rate), burst_bytes=burst))
    if link.loss_percent:
        faults.append(loss(host, link.loss_percent / 100))
    with ExitStack() as stack:
        for fault in faults:
            fault.start()
            stack.callback(fault.heal, must_have_acted=False)
        return stack.pop_all()


def _set_num_segments(host: Host, num: int) -> None:
    run("ip", "-n", host.name, "link", "set", host.device, "gso_max_segs", str(num))
