"""The units of deploy/systemd on machines that systemd has booted, as deploy/systemd/README.md has them."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scaling.hosts.namespaces import Network
from scaling.hosts.ray_hosts import wait_until
from tests.deploy.systemd_machine import PROGRAM, Machine, make_root, missing

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]

HEAD, JOIN, SERVE = "expertmesh-head", "expertmesh-join", "expertmesh-serve"
CLIENT = (PROGRAM, "client", "127.0.0.1:50051", "--prompt", "def main():", "--temperature", "0")
LONG = (*CLIENT, "--ignore-eos", "--max-tokens", "400")


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine, Machine]]:
    """A head and two others, on a network of their own."""
    if lacking := missing():
        pytest.fail(f"{lacking}: apt-get install mmdebstrap systemd-container, and run as root")
    with ExitStack() as stack:
        # Below no other folder that is closed to the machine's users.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="em-systemd-")))
        make_root(folder / "root")
        network = stack.enter_context(Network())
        first, second, third = (
            stack.enter_context(Machine(network.host(name), folder / "root", folder / f"{name}.log"))
            for name in ("head", "one", "two")
        )
        yield first, second, third


def start_head(head: Machine) -> None:
    head.write("/etc/expertmesh/head.env", f"HEAD_OPTIONS=--address {head.host.address}\n")
    head.run("systemctl", "start", HEAD)
    head.wait_said(HEAD, "READY head=")


def start_join(machine: Machine, head: Machine) -> None:
    machine.write(
        "/etc/expertmesh/join.token", head.run("cat", "/var/lib/expertmesh/cluster/join.token"), "600"
    )
    options = f"HEAD={head.host.address}:6380\nJOIN_OPTIONS=--address {machine.host.address}\n"
    machine.write("/etc/expertmesh/join.env", options)
    machine.run("systemctl", "start", JOIN)
    machine.wait_said(JOIN, "READY node=")


def test_a_cluster_of_units_starts_leaves_restarts_and_stops(
    machines: tuple[Machine, Machine, Machine],
) -> None:
    head, one, two = machines
    start_head(head)
    start_join(one, head)
    start_join(two, head)
    options = "SERVE_OPTIONS=--replicas 2 --worker-threads 1\n"
    head.write("/etc/expertmesh/serve.env", f"MODEL=/opt/source/demo/checkpoint\n{options}")
    head.run("systemctl", "start", SERVE)
    head.wait_said(SERVE, "READY grpc=")
    assert head.run(*CLIENT, "--max-tokens", "8")
    for machine, unit in ((head, HEAD), (head, SERVE), (one, JOIN)):
        assert machine.user_of(unit) == "expertmesh"

    # One leaves while a stream runs, which loses nothing.
    golden = head.run(*LONG)
    with head.popen(*LONG) as stream:
        assert stream.stdout is not None
        begun = stream.stdout.read(1)
        one.run("systemctl", "stop", JOIN)
        rest, _ = stream.communicate(timeout=120)
    assert stream.returncode == 0, rest
    assert (begun + rest).decode() == golden
    assert one.state(JOIN)["Result"] == "success"
    assert not one.processes_of(JOIN)

    # What is killed comes back by itself, and then the server has all its workers again.
    one.run("systemctl", "start", JOIN)
    one.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", JOIN)
    wait_until(lambda: one.state(JOIN)["NRestarts"] == "1", 60, "the node is not started again")
    wait_until(lambda: one.journal(JOIN).count("READY node=") >= 2, 90, "the node has not joined again")
    head.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", SERVE)
    wait_until(lambda: head.journal(SERVE).count("READY grpc=") == 2, 120, "the server is not back")
    assert head.run(*CLIENT, "--max-tokens", "8")

    for machine in (one, two):
        machine.run("systemctl", "stop", JOIN)
        assert machine.state(JOIN)["Result"] == "success", machine.journal(JOIN)
    # The server needs the head, so it ends first, and in order.
    head.run("systemctl", "stop", HEAD)
    for unit in (SERVE, HEAD):
        ended = head.state(unit)
        assert (ended["ActiveState"], ended["Result"]) == ("inactive", "success"), head.journal(unit)
    for machine in machines:
        assert machine.processes_of_user("expertmesh") == []
