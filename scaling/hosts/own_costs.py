"""What the rig itself costs: round trips and throughput between emulated hosts, as they are and not as said.

    python -P -m scaling.hosts.own_costs

measures cables of several links on this machine, half a minute, and prints a table. It needs root.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path as FilePath

from msgspec import Struct

from scaling.hosts import path_program
from scaling.hosts.cables import Cables
from scaling.hosts.namespaces import Host, Network, missing_capability
from scaling.link import Link
from scaling.machines import Path

_PROGRAM = str(FilePath(path_program.__file__))
_SECONDS = 1.0
_TIMEOUT = 90.0
LINKS: Mapping[str, Link] = {
    "plain": Link(),
    "1 Gbit/s": Link(gbit=1),
    "0.1 Gbit/s": Link(gbit=0.1),
    "0.5 ms": Link(delay_ms=0.5),
    "2 ms": Link(delay_ms=2),
    "1 Gbit/s, 0.5 ms": Link(gbit=1, delay_ms=0.5),
    "0.1 Gbit/s, 2 ms": Link(gbit=0.1, delay_ms=2),
    "1 % lost": Link(loss_percent=1),
    "0.5 ms, 1 % lost": Link(delay_ms=0.5, loss_percent=1),
}


class Measured(Struct, frozen=True):
    """Between two hosts: of round trips, in microseconds, their median and the one that 95 % are below;
    `gbit`: one way, by one TCP connection."""

    round_trip_us: float
    late_us: float
    gbit: float


def measure_paths(network: Network, seconds: float = _SECONDS) -> list[Path]:
    """Each pair of a network's hosts, with the cables that they have now, one pair after the other; machines
    are named as hosts are. RuntimeError where a host cannot be measured."""
    hosts = network.hosts
    pairs = combinations(hosts, 2)
    with ExitStack() as stack:
        for host in hosts.values():
            stack.callback(_end, _serving(host))
        found = {pair: _asked(hosts[pair[0]], hosts[pair[1]], seconds) for pair in pairs}
    return [Path(pair, path.gbit, path.round_trip_us) for pair, path in found.items()]


def measure_links(links: Mapping[str, Link], seconds: float = _SECONDS) -> dict[str, Measured]:
    """Between a host with a plain cable and one with each of these."""
    with Network() as network, Cables(network) as cables:
        head, worker = network.host("head"), network.host("w0")
        found = {}
        for name, link in links.items():
            cables.set({worker: link})
            with ExitStack() as stack:
                stack.callback(_end, _serving(worker))
                found[name] = _asked(head, worker, seconds)
    return found


def _serving(host: Host) -> "subprocess.Popen[bytes]":
    process = host.popen(sys.executable, "-I", _PROGRAM, "serve", host.address, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if process.stdout.readline() != b"READY\n":
        raise RuntimeError(f"{host.name}: nothing that answers could be started")
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(_TIMEOUT)
    assert process.stdout is not None
    process.stdout.close()


def _asked(source: Host, dest: Host, seconds: float) -> Measured:
    command = source.command(sys.executable, "-I", _PROGRAM, "ask", dest.address, str(seconds))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{source.name} to {dest.name}: {error}") from None
    found = json.loads(done.stdout)
    times: Sequence[float] = found["round_trips_us"]
    return Measured(times[len(times) // 2], times[len(times) * 95 // 100], found["gbit"])


def main() -> int:
    if missing := missing_capability():
        print(f"error: {missing}", file=sys.stderr)
        return 1
    print(f"busy before it began: {FilePath('/proc/loadavg').read_text().split()[0]}\n")
    print("| link | round trip of 2 KiB, median | 95 % below | throughput of one connection |")
    print("|---|---|---|---|")
    for name, path in measure_links(LINKS).items():
        times = f"{path.round_trip_us / 1e3:.2f} ms | {path.late_us / 1e3:.2f} ms"
        print(f"| {name} | {times} | {path.gbit:.3g} Gbit/s |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
