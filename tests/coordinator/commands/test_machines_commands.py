"""The commands that make machines a cluster: their options, what they refuse, what doctor says."""

import argparse
import socket
from pathlib import Path

import pytest

from coordinator.commands import doctor, doctor_arguments, head, head_arguments, join_arguments
from coordinator.commands.cluster_arguments import PortArguments, enrolment, port_range
from coordinator.commands.head_arguments import HeadArguments
from coordinator.commands.join_arguments import JoinArguments
from expert_workers.machines.checks import Level, Row
from expert_workers.machines.ports import NodePorts, PortRange
from expertmesh.commands.options import options_of
from expertmesh.commands.parser import OneLineParser
from moe_model.errors import ConfigError
from tests.expert_workers.machines.made import HEAD, enrolling


def parsed(module: object, *arguments: str) -> argparse.Namespace:
    parser = OneLineParser(prog="expertmesh")
    module.add_arguments(parser)  # type: ignore[attr-defined]
    return parser.parse_args(arguments)


def test_the_defaults_are_the_pinned_ports() -> None:
    given = options_of(parsed(head_arguments), HeadArguments)
    assert (given.port, given.enrol_port) == (6379, 6380)
    assert (
        given.ports.ports == NodePorts() == NodePorts(6381, PortRange(20000, 20099), PortRange(20100, 20199))
    )
    joined = options_of(parsed(join_arguments, "h:1", "--token-file=x"), JoinArguments)
    assert joined.ports == given.ports
    assert (joined.head_timeout, joined.leave_timeout) == (300.0, 60.0)


@pytest.mark.parametrize("text", ["", "5", "5-", "-5", "a-b", "3000-2000", "80-90", "2000-70000", "1e4-2e4"])
def test_what_is_no_range_of_ports(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        port_range(text)


def test_ranges_that_overlap_are_named() -> None:
    assert port_range("2000-2000") == PortRange(2000, 2000)
    with pytest.raises(ConfigError, match=r"--node-port 20095-20100 and --worker-ports 20000-20099 overlap"):
        PortArguments(node_port=20095)
    with pytest.raises(ConfigError, match="--worker-ports 20000-20100 and --data-ports"):
        PortArguments(worker_ports=PortRange(20000, 20100))


@pytest.mark.parametrize("address", ["h", "h:0", "h:99999", "[::1]:6380", "http://h:1", ""])
def test_an_address_of_a_head_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="head address"):
        enrolment(address)
    assert enrolment("strong.local:6380") == ("strong.local", 6380)


@pytest.mark.parametrize("option", ["--address=::1", "--address=strong", "--port=80", "--enrol-port=70000"])
def test_options_that_are_refused_in_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(head_arguments, option)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_head_without_tls_is_for_loopback() -> None:
    def plan(*options: str) -> object:
        return head._plan(options_of(parsed(head_arguments, *options), HeadArguments))

    plan("--no-tls", "--address=127.0.0.2")
    plan("--no-tls", "--address=10.0.0.1", "--insecure")
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1: other machines can reach it, without TLS"):
        plan("--no-tls", "--address=10.0.0.1")


def test_ray_s_own_idea_of_loopback_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "own_address", lambda: "10.0.0.1")
    with pytest.raises(ConfigError, match=r"Ray itself goes to 10\.0\.0\.1 instead.*127\.0\.0\.2"):
        head._plan(HeadArguments(address="127.0.0.1"))
    monkeypatch.setattr(head, "own_address", lambda: "127.0.0.1")
    head._plan(HeadArguments(address="127.0.0.1"))


def diagnosed(*arguments: str) -> int:
    return doctor.run(parsed(doctor_arguments, *arguments))


def free_ports() -> list[str]:
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as two:
        workers, data = (each.getsockname()[1] for each in (one, two))
    return [f"--worker-ports={workers}-{workers}", f"--data-ports={data}-{data}"]


def test_doctor_of_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--worker-ports=9301-9302", f"--folder={tmp_path / 'none'}", f"--cache={tmp_path}"]
        assert diagnosed(f"--data-ports={port}-{port}", *options) == 1
    said = capsys.readouterr().out
    assert f"  error   ports: {port} (rows): Address already in use; end what listens there" in said
    assert "ok      versions: expertmesh" in said


def test_doctor_of_the_way_to_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no Ray here, so its ports are out of reach; enrolment is not changed by the question."""
    with enrolling(tmp_path / "head") as made:
        where = f"127.0.0.1:{made.port}"
        before = {each.name: each.read_bytes() for each in made.folder.path.iterdir()}
        token = [f"--token-file={made.folder.file('join.token')}", f"--folder={tmp_path / 'none'}"]
        assert diagnosed(where, *token, *free_ports()) == 1
        said = capsys.readouterr().out
        assert "ok      token, versions, clock: as the head's" in said
        assert "ok      ports from the head: 127.0.0.1 can be reached" in said
        assert f"error   ports of the head: cannot reach {HEAD} (Ray's head): Connection refused" in said
        assert "Mbit/s from the head" in said
        assert {each.name: each.read_bytes() for each in made.folder.path.iterdir()} == before
        diagnosed(where, f"--folder={tmp_path / 'none'}", *free_ports())
        assert "warning head: something listens there" in capsys.readouterr().out
    assert diagnosed(where, *token, *free_ports()) == 1
    assert f"error   head: {where} cannot be reached: Connection refused" in capsys.readouterr().out


def test_the_worst_row_counts() -> None:
    rows = [Row("a", Level.OK, "x"), Row("b", Level.WARNING, "x", "y"), Row("c", Level.OK, "x")]
    assert doctor._told("w", iter(rows)) is Level.WARNING
    assert doctor._told("w", iter([*rows, Row("d", Level.ERROR, "x", "y"), *rows])) is Level.ERROR
