"""Cables carry what a link says, within the bounds that docs/emulated-hosts.md states."""

import json
import socket
import sys
from collections.abc import Iterator

import pytest

from scaling.hosts.cables import Cables
from scaling.hosts.namespaces import Host, Network
from scaling.hosts.own_costs import Measured, measure_links, measure_paths
from scaling.link import Link
from tests.scaling.hosts.echo import Echo, serve_echo

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120), pytest.mark.usefixtures("capable")]

NUM_PACKETS = 4000
# Counts what comes of the datagrams that are sent to it, until none comes for a second. 33: SO_RCVBUFFORCE.
COUNT = """
import socket, sys
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
receiver.bind((sys.argv[1], 9))
print("READY", flush=True)
num = 0
try:
    while True:
        receiver.recv(100)
        receiver.settimeout(1.0)
        num += 1
except TimeoutError:
    print(num)
"""


@pytest.fixture
def network(capable: None) -> Iterator[Network]:
    with Network() as network:
        for name in ("head", "w0"):
            network.host(name)
        yield network


@pytest.fixture
def cables(network: Network) -> Iterator[Cables]:
    with Cables(network) as cables:
        yield cables


def measured(link: Link) -> Measured:
    return measure_links({"one": link})["one"]


@pytest.mark.parametrize("link", [Link(gbit=0.1), Link(gbit=0.1, delay_ms=1.0), Link(gbit=0.5, delay_ms=0.5)])
def test_bandwidth_and_delay_are_what_the_link_says(link: Link) -> None:
    path = measured(link)
    assert link.gbit is not None
    assert 0.8 * link.gbit < path.gbit < 1.02 * link.gbit
    assert 2e3 * link.delay_ms <= path.round_trip_us < 2e3 * link.delay_ms + 1500


def test_a_cable_without_limits_is_quick() -> None:
    path = measured(Link())
    assert path.round_trip_us < 1000
    assert path.gbit > 1


@pytest.mark.parametrize("delay_ms", [0.0, 0.2])
def test_so_many_packets_are_lost(network: Network, cables: Cables, delay_ms: float) -> None:
    cables.set({network.hosts["w0"]: Link(delay_ms=delay_ms, loss_percent=5)})
    share = 1 - num_received(network, network.hosts["w0"]) / NUM_PACKETS
    # Five standard deviations of so many packets.
    assert share == pytest.approx(0.05, abs=0.0175)


def num_received(network: Network, host: Host) -> int:
    process = host.popen(sys.executable, "-c", COUNT, host.address, stdout=-1)
    assert process.stdout is not None
    assert process.stdout.readline() == b"READY\n"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(NUM_PACKETS):
            sender.sendto(b"x", (host.address, 9))
    return int(process.stdout.readline())


def num_sent_by(host: Host) -> int:
    (link,) = json.loads(host.run("ip", "-j", "-s", "link", "show", host.device))
    return int(link["stats64"]["tx"]["packets"])


@pytest.mark.parametrize("delay_ms", [0.0, 0.2])
def test_where_packets_are_lost_a_frame_is_one_packet(
    network: Network, cables: Cables, delay_ms: float
) -> None:
    host, size = network.hosts["w0"], 300_000
    serve_echo(host)
    cables.set({host: Link(delay_ms=delay_ms)})
    before = num_sent_by(host)
    with Echo(host) as echo:
        echo.round_trip(size=size)
    assert num_sent_by(host) - before < size / 1448, "else many packets are one frame"
    cables.set({host: Link(delay_ms=delay_ms, loss_percent=0.001)})
    before = num_sent_by(host)
    with Echo(host) as echo:
        echo.round_trip(size=size)
    assert num_sent_by(host) - before >= size / 1448


def test_connections_live_through_a_change_of_the_cable(network: Network, cables: Cables) -> None:
    host = network.hosts["w0"]
    serve_echo(host)
    with Echo(host) as echo:
        for link in (Link(delay_ms=5), Link(gbit=0.05), Link(), Link(delay_ms=2, loss_percent=0.1), Link()):
            cables.set({host: link})
            echo.round_trip(20.0)
            assert (host.relay is not None) == (link.delay_ms > 0)
            assert echo.round_trip() >= 2e-3 * link.delay_ms


def test_cables_are_plain_after_it(network: Network) -> None:
    head, worker = network.hosts.values()
    rules = network.router.run("iptables-save")
    with Cables(network) as cables:
        cables.set({head: Link(gbit=1), worker: Link(gbit=0.1, delay_ms=1, loss_percent=1)})
        assert "tbf" in head.run("tc", "qdisc", "show", "dev", head.device)
    assert worker.relay is None
    assert "tbf" not in head.run("tc", "qdisc", "show", "dev", head.device)
    assert [line for line in network.router.run("iptables-save").splitlines() if "fault" in line] == []
    assert "fault" not in rules


def test_paths_of_each_pair(network: Network, cables: Cables) -> None:
    network.host("w1")
    cables.set({network.hosts["w0"]: Link(gbit=0.1, delay_ms=1)})
    paths = {path.between: path for path in measure_paths(network, seconds=0.3)}
    assert set(paths) == {("head", "w0"), ("head", "w1"), ("w0", "w1")}
    assert paths["head", "w0"].round_trip_us > 2000 > paths["head", "w1"].round_trip_us
    assert paths["w0", "w1"].gbit < 0.11 < paths["head", "w1"].gbit
