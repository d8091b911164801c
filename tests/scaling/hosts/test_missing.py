"""What a machine lacks for emulated hosts is one line that names the thing."""

import os
from pathlib import Path

import pytest

from scaling.cell import Cell, Load
from scaling.hosts import namespaces
from scaling.hosts.topology import NamespaceTopology

CELL = Cell("demo", Load(concurrency=1), workers=1, where="namespaces")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One where all is there, whatever this one has."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda command: f"/sbin/{command}")
    monkeypatch.setattr("os.access", lambda path, mode: True)
    monkeypatch.setattr(namespaces, "run", lambda *command, **options: "")
    monkeypatch.setattr(
        "scaling.hosts.topology.missing_capability", namespaces.missing_capability.__wrapped__
    )
    monkeypatch.setattr("scaling.hosts.topology.missing_groups", lambda: "")
    return monkeypatch


def missing() -> str:
    with NamespaceTopology() as topology:
        return topology.missing(CELL)


def test_nothing_is_missing(machine: pytest.MonkeyPatch) -> None:
    assert missing() == ""


def test_root(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("os.geteuid", lambda: 1000)
    assert missing() == "network namespaces need root"


@pytest.mark.parametrize("command", ["ip", "tc", "nsenter", "iptables", "iptables-restore"])
def test_a_command(machine: pytest.MonkeyPatch, command: str) -> None:
    machine.setattr("shutil.which", lambda name: None if name == command else f"/sbin/{name}")
    assert missing() == f"not installed: {command}"


def test_devices_of_tunnels(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("os.access", lambda path, mode: Path(path) != Path("/dev/net/tun"))
    assert missing() == "no /dev/net/tun"


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (["ip", "netns", "add"], "no network namespace can be made: not permitted"),
        (["nsenter"], "no firewall rules in a network namespace: not permitted"),
    ],
)
def test_what_the_kernel_refuses(machine: pytest.MonkeyPatch, refused: list[str], said: str) -> None:
    def run(*command: str, stdin: str | None = None) -> str:
        if list(command[: len(refused)]) == refused:
            raise RuntimeError("not permitted")
        return ""

    machine.setattr(namespaces, "run", run)
    assert missing() == said


def test_control_groups(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("scaling.hosts.topology.missing_groups", lambda: "hosts need control groups: none")
    assert missing() == "hosts need control groups: none"


def test_it_starts_no_hosts_to_find_out(machine: pytest.MonkeyPatch) -> None:
    topology = NamespaceTopology()
    topology.missing(CELL)
    assert topology.num_clusters == 0
    assert not list(Path("/run").glob(f"netns/emx{os.getpid()}-*"))
