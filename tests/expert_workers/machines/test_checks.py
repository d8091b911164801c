"""Each row of the doctor's: what is well, and what is said where it is not."""

import os
import resource
import socket
from pathlib import Path

import pytest

from expert_workers.machines import checks
from expert_workers.machines.checks import Level, Row
from expert_workers.machines.ports import NodePorts, PortRange

GIB = 1 << 30


def test_this_machine_has_a_row_for_each_thing(tmp_path: Path) -> None:
    rows = checks.machine_rows(tmp_path)
    assert len({row.name for row in rows}) == len(rows) > 8
    for row in rows:
        assert "\n" not in row.line()
        assert row.level is Level.OK or row.todo, row


def test_a_line_says_what_to_do() -> None:
    assert Row("memory", Level.OK, "enough").line() == "ok      memory: enough"
    assert Row("memory", Level.ERROR, "none", "buy some").line() == "error   memory: none; buy some"


@pytest.mark.parametrize(
    ("available", "level"), [(GIB - 1, Level.ERROR), (4 * GIB - 1, Level.WARNING), (4 * GIB, Level.OK)]
)
def test_memory(available: int, level: Level) -> None:
    assert checks.memory(8 * GIB, available).level is level


@pytest.mark.parametrize(
    ("limits", "level"),
    [
        ((1024, 1023), Level.ERROR),
        ((1024, 4095), Level.WARNING),
        ((1024, 4096), Level.OK),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), Level.OK),
    ],
)
def test_open_files(limits: tuple[int, int], level: Level) -> None:
    assert checks.open_files(limits).level is level


def test_kernels_that_are_not_built(tmp_path: Path) -> None:
    row = checks.kernels(tmp_path)
    assert row.level is Level.WARNING
    assert "moe_model/kernels/native" in row.said
    assert "C compiler" in row.todo


def test_a_folder_for_temporary_files(tmp_path: Path) -> None:
    assert checks.temporary_folder("/tmp").level is Level.OK
    assert checks.temporary_folder(str(tmp_path / ("x" * 40))).level is Level.WARNING
    assert checks.temporary_folder("/tmp/none").level is Level.ERROR


def test_a_cache_that_is_not_there_yet(tmp_path: Path) -> None:
    row = checks.disk(tmp_path / "a" / "b")
    assert row.level is not Level.ERROR
    assert "GiB free" in row.said


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere but to what is mounted for reading.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    row = checks.disk(tmp_path / "none")
    assert row.level is Level.ERROR
    assert "--cache" in row.todo


def test_shared_memory(tmp_path: Path) -> None:
    assert checks.shared_memory(tmp_path / "none").level is Level.WARNING
    assert checks.shared_memory(tmp_path).name == str(tmp_path)


def test_a_name_without_an_address() -> None:
    assert checks.host_name("none.invalid").level is Level.WARNING
    assert checks.host_name("localhost").level is Level.OK


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = NodePorts(port, PortRange(port, port), PortRange(port, port))
        row = checks.free_ports([port], ports)
        assert row.level is Level.ERROR
        assert row.said == f"{port} (Ray's node manager): Address already in use"
        assert "--node-port" in row.todo
    assert checks.free_ports([], ports).level is Level.OK


def test_a_port_out_of_reach_names_the_firewall() -> None:
    row = checks.reachable("ports from the head", "10.0.0.3", {6381: "timed out"}, NodePorts())
    assert row.level is Level.ERROR
    assert "10.0.0.3:6381 (Ray's node manager): timed out" in row.said
    assert "a firewall is between: open 6381-6386, 20000-20099, 20100-20199" in row.todo
    refused = checks.reachable("ports", "10.0.0.3", {20100: "Connection refused"}, NodePorts())
    assert "(rows)" in refused.said
    assert "nothing listens" in refused.todo
