"""The rig itself: every fault acts and heals, delays are what they say, and nothing is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.hosts.left_over import run, sweep
from scaling.hosts.links import Bandwidth, Delay, Unplug, loss, one_way, partition, reset
from scaling.hosts.namespaces import Host, Network, missing_capability
from tests.integration.processes import wait_gone
from tests.scaling.hosts.echo import Echo, serve_echo

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60), pytest.mark.usefixtures("capable")]
SHORT = 0.4


@pytest.fixture(scope="module")
def network(capable: None) -> Iterator[Network]:
    with Network() as network:
        for name in ("a", "b"):
            serve_echo(network.host(name))
        serve_echo(network.host("far", is_relayed=True))
        yield network


@pytest.fixture
def a(network: Network) -> Host:
    return network.hosts["a"]


@pytest.fixture
def b(network: Network) -> Host:
    return network.hosts["b"]


@pytest.fixture
def far(network: Network) -> Host:
    return network.hosts["far"]


def round_trip(echo: Echo) -> float:
    """The shortest of some: what is longer, a busy machine has added."""
    return min(echo.round_trip() for _ in range(15))


def can_reach(source: Host, dest: Host) -> bool:
    """From one host to another."""
    code = f"import socket; socket.create_connection(({dest.address!r}, 7), {SHORT}).close()"
    process = source.popen(sys.executable, "-c", code)
    return process.wait(20) == 0


def names_of_ours() -> set[str]:
    """Everything in the machine's lists that has this process's mark."""
    lists = (Path("/run/netns"), Path("/sys/class/net"))
    return {path.name for place in lists for path in place.glob(f"emx{os.getpid()}-*")}


def test_hosts_reach_each_other_and_the_test_reaches_them(a: Host, b: Host, far: Host) -> None:
    assert can_reach(a, b)
    assert can_reach(b, far)
    assert can_reach(a, a), "loopback is up"
    for host in (a, b, far):
        with Echo(host) as echo:
            assert echo.round_trip() < 1.0


def test_a_partition_cuts_a_host_off_and_heals(a: Host, b: Host) -> None:
    with Echo(a) as echo, Echo(b) as other:
        fault = partition(a).start()
        with pytest.raises(TimeoutError):
            echo.round_trip(SHORT)
        assert other.round_trip() < 1.0, "others go on"
        assert not can_reach(b, a)
        assert can_reach(a, a), "a host cut off still has itself"
        assert fault.heal() > 0
        # What was sent under the partition comes late, by TCP.
        assert echo.round_trip() < 5.0
        assert can_reach(b, a)


def test_a_partition_between_two_hosts_leaves_the_rest(a: Host, b: Host, far: Host) -> None:
    with Echo(a) as echo, partition(a, b) as fault:
        assert not can_reach(a, b)
        assert not can_reach(b, a)
        assert can_reach(a, far)
        assert echo.round_trip() < 1.0
        assert fault.count > 0
    assert can_reach(a, b)


def test_a_one_way_partition_loses_only_what_the_host_sends(a: Host, network: Network) -> None:
    with Echo(a) as echo:
        before = received_bytes(a)
        with one_way(a) as fault:
            with pytest.raises(TimeoutError):
                echo.round_trip(SHORT, size=1000)
            assert received_bytes(a) - before > 1000
            assert fault.count > 0
        assert echo.round_trip() < 5.0


def received_bytes(host: Host) -> int:
    shown = host.run("ip", "-s", "link", "show", host.device).splitlines()
    return int(shown[3].split()[0])


def test_a_reset_ends_connections_on_both_sides(a: Host, b: Host) -> None:
    with Echo(a) as echo:
        with reset(a) as fault:
            with pytest.raises(ConnectionError):
                echo.round_trip()
            with pytest.raises(ConnectionRefusedError):
                Echo(a)
            assert not can_reach(a, b)
            assert fault.count >= 3
        with pytest.raises(ConnectionError):
            echo.round_trip()
    with Echo(a) as echo:
        assert echo.round_trip() < 1.0


def test_loss_loses_its_share(a: Host) -> None:
    with Echo(a) as echo, loss(a, 0.2) as fault:
        for _ in range(20):
            echo.round_trip(30.0)
        assert 2 <= fault.count <= 60
    count = fault.count
    with Echo(a) as echo:
        assert round_trip(echo) < 0.1
    assert fault.count == count, "healed: the count stands"


def test_an_unplugged_cable_is_plugged_in_again(a: Host, b: Host) -> None:
    fault = Unplug(a)
    with Echo(a) as echo:
        for times in (1, 2):
            with fault:
                with pytest.raises((TimeoutError, OSError)):
                    echo.round_trip(SHORT)
                assert not can_reach(b, a)
            assert fault.count == times
            assert echo.round_trip() < 5.0


def test_bandwidth_is_what_is_left(a: Host) -> None:
    size = 500_000
    with Echo(a) as echo:
        fast = echo.round_trip(size=size)
        with Bandwidth(a, 10_000_000) as fault:
            # Both ways at once, so what it takes is 0.4 s and what the buckets hold at first is not counted.
            assert 0.3 < echo.round_trip(size=size) < 2.0
            assert fault.count > 0
        assert echo.round_trip(size=size) < max(0.2, 4 * fast)


def test_a_relay_delays_each_way(far: Host, a: Host) -> None:
    with Echo(far) as echo:
        undelayed = round_trip(echo)
        assert undelayed < 0.005
        with Delay(far, 0.025) as fault:
            assert 0.050 <= round_trip(echo) < 0.056
            with Echo(a) as near:
                assert round_trip(near) < 0.005
            assert fault.count >= 30
        assert round_trip(echo) < 0.005


def test_a_cable_outlives_the_processes_of_its_host() -> None:
    with Network() as network:
        host = network.host("h", is_relayed=True)
        for _ in range(2):
            serve_echo(host)
            with Echo(host) as echo:
                assert echo.round_trip() < 1.0
            host.kill_all()


def test_jitter_spreads_the_delays(far: Host) -> None:
    with Echo(far) as echo, Delay(far, 0.02, jitter=0.01):
        times = [echo.round_trip() for _ in range(40)]
    assert min(times) >= 0.02
    assert min(times) < 0.04
    assert max(times) - min(times) > 0.008


def test_a_relay_carries_a_stream_whole(far: Host) -> None:
    with Echo(far) as echo, Delay(far, 0.005, jitter=0.005):
        for _ in range(5):
            echo.round_trip(10.0, size=200_000)


def test_a_fault_that_did_nothing_is_an_error(a: Host, b: Host) -> None:
    fault = partition(a, b).start()
    with pytest.raises(AssertionError, match="did nothing"):
        fault.heal()
    assert can_reach(a, b), "and it is healed all the same"


def test_faults_of_one_host_add_up(a: Host) -> None:
    with Echo(a) as echo, partition(a) as first:
        with partition(a) as second, pytest.raises(TimeoutError):
            echo.round_trip(SHORT)
        assert second.count > 0
        with pytest.raises(TimeoutError):
            echo.round_trip(SHORT)
        assert first.count > 0


def test_no_rule_stays(network: Network, a: Host) -> None:
    for fault in (partition(a), reset(a), loss(a, 0.5)):
        fault.start().heal(must_have_acted=False)
    rules = network.router.run("iptables-save").splitlines()
    assert [line for line in rules if line.startswith("-A") or "fault" in line] == []


def test_nothing_is_left_of_a_network() -> None:
    before, routes = names_of_ours(), run("ip", "route")
    with Network() as network:
        host = network.host("h", is_relayed=True)
        serve_echo(host)
        # Stopped, deaf to SIGTERM, and a grandchild whose parent is gone: all end with the host.
        stopped = host.popen("sleep", "600")
        deaf = host.popen("sh", "-c", "trap '' TERM; setsid sleep 600 & wait")
        os.kill(stopped.pid, signal.SIGSTOP)
        with partition(host) as fault, pytest.raises(TimeoutError):
            Echo(host, SHORT)
        assert fault.count > 0
        loss(host, 0.5).start()
        assert host.relay is not None
        # The first may have been stopped on its way there.
        pids = {*host.pids(), stopped.pid, host.relay.pid}
        assert deaf.pid in host.pids()
        assert len(pids) >= 5
        assert names_of_ours() > before
    assert wait_gone(pids) == set()
    assert names_of_ours() == before
    assert run("ip", "route") == routes
    assert "fault" not in run("iptables-save"), "rules are the router's, and never this machine's own"


def test_nothing_is_left_when_the_test_fails() -> None:
    before = names_of_ours()
    with pytest.raises(ZeroDivisionError), Network() as network, partition(network.host("h")):
        raise ZeroDivisionError
    assert names_of_ours() == before


KILLED = """
import os, signal
from scaling.hosts.namespaces import Network
network = Network()
host = network.host("h", is_relayed=True)
print(os.getpid(), host.popen("sleep", "600").pid, host.relay.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_has_left_is_swept_away(network: Network) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    pid, sleep, relay = killed.stdout.split()
    assert Path(f"/proc/{sleep}").exists()
    swept = sweep()
    mine = {name for name in swept if name.startswith(f"emx{pid}-")}
    assert {name.rpartition("-")[2] for name in mine} == {"h", "router", "s"}
    assert wait_gone({int(sleep), int(relay)}) == set()
    assert list(Path("/run/netns").glob(f"emx{pid}-*")) == []
    with Echo(network.hosts["a"]) as echo:
        assert echo.round_trip() < 1.0, "what is in use is let alone"


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = missing_capability.__wrapped__
    assert probe() == ""
    monkeypatch.setattr("shutil.which", {"ip": "/ip", "tc": "/tc", "nsenter": "/nsenter"}.get)
    assert probe() == "not installed: iptables, iptables-restore"
    monkeypatch.setattr("os.geteuid", lambda: 1)
    assert probe() == "network namespaces need root"
