import os
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.config.workers import WorkersConfig
from coordinator.server.open_fleet import data_tls, open_transport
from expert_workers.dispatch.combine import Combine
from expert_workers.dispatch.options import OnLoss
from expert_workers.machines.cluster_folder import ClusterFolder, Membership
from expert_workers.machines.ports import NodePorts
from expert_workers.tls import TlsPaths
from expertmesh.commands.options import add_options, declared, options_of
from expertmesh.commands.parser import OneLineParser
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import write_private


def parse(*arguments: str) -> WorkersConfig:
    parser = OneLineParser()
    add_options(parser, WorkersConfig)
    return options_of(parser.parse_args(arguments), WorkersConfig)


def test_rows_go_over_exact_streams_unless_told_otherwise() -> None:
    config = parse()
    assert (config.transport, config.wire_dtype, config.combine) == ("stream", "float32", "exact")
    assert config == WorkersConfig()


def test_the_names_on_the_command_line_are_those_of_the_workers_room() -> None:
    choices = {each.name: each.choices for each in declared(WorkersConfig)}
    assert choices["on_expert_loss"] == tuple(OnLoss)
    assert choices["combine"] == tuple(Combine)


def test_the_data_plane_can_be_chosen() -> None:
    config = parse("--transport", "ray", "--wire-dtype", "bfloat16", "--combine", "sum")
    assert (config.transport, config.wire_dtype, config.combine) == ("ray", "bfloat16", "sum")


@pytest.mark.parametrize("wrong", [["--transport", "udp"], ["--wire-dtype", "int8"], ["--combine", "max"]])
def test_what_there_is_not_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*wrong)
    assert wrong[0] in capsys.readouterr().err


def test_files_of_tls_are_needed_together_and_the_key_must_be_private(tmp_path: Path) -> None:
    cert, key, ca = (write_private(tmp_path / name, b"x") for name in ("cert", "key", "ca"))
    paths = ["--data-tls-cert", str(cert), "--data-tls-key", str(key), "--data-tls-ca", str(ca)]
    assert data_tls(parse()) is None
    assert data_tls(parse(*paths)) == TlsPaths(str(cert), str(key), str(ca))
    with pytest.raises(ConfigError, match="are needed together"):
        data_tls(parse(*paths[:4]))
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"data plane TLS key .*: others can read"):
        data_tls(parse(*paths))


def test_a_number_of_machines_is_for_workers_that_follow_them() -> None:
    assert parse("--workers-per-node", "2", "--min-machines", "3").min_machines == 3
    with pytest.raises(ConfigError, match="say --workers-per-node K"):
        parse("--min-machines", "3")


def test_a_cluster_without_workers_is_refused() -> None:
    for name, more in (("--cluster", []), ("--ray-address", ["auto"])):
        with pytest.raises(ConfigError, match=f"^{name} is for expert workers: say --workers N"):
            parse("--workers=0", name, *more)


def test_without_workers_here_there_may_be_some_on_each_machine() -> None:
    assert not parse("--workers", "0").has_workers
    assert parse("--workers", "0", "--workers-per-node", "1").has_workers


def test_a_cluster_brings_its_certificates_and_excludes_other_ways(tmp_path: Path) -> None:
    folder = ClusterFolder.create(tmp_path / "cluster")
    membership = Membership("10.0.0.1:6379", "10.0.0.1", is_head=True, has_tls=True, ports=NodePorts())
    folder.remember(membership)
    config = parse("--workers=1", "--cluster", str(folder.path))
    assert config.is_on_running_ray
    assert not config.needs_own_ray
    with pytest.raises(ConfigError, match=r"node\.key: No such file"):
        data_tls(config)
    folder.write("node.key", b"x")
    assert data_tls(config) == TlsPaths("node.pem", "node.key", "ca.pem"), "each machine's own, by name"
    folder.remember(replace(membership, has_tls=False))
    assert data_tls(config) is None
    assert parse("--workers=1", "--cluster").cluster == Path("~/.expertmesh/cluster")
    assert parse().cluster is None
    files = ["--data-tls-cert=a", "--data-tls-key=b", "--data-tls-ca=c"]
    with pytest.raises(ConfigError, match="leave out --data-tls-cert"):
        parse("--workers=1", "--cluster", *files)
    with pytest.raises(SystemExit):
        parse("--workers=1", "--cluster", "--ray-address=h:1")


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = parse("--workers=1", "--cluster", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"none: there is none; `expertmesh head`"), open_transport(config):
        pass


def test_the_environment_of_a_cluster_is_there_for_its_time(tmp_path: Path) -> None:
    folder = ClusterFolder.create(tmp_path / "cluster")
    folder.remember(Membership("10.0.0.1:6379", "10.0.0.1", is_head=True, has_tls=False, ports=NodePorts()))
    assert "EXPERTMESH_CLUSTER" not in os.environ
    with open_transport(parse("--workers=1", "--cluster", str(folder.path))):
        assert os.environ["EXPERTMESH_CLUSTER"] == str(folder.path)
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(folder.path / "ray.token")
    assert "EXPERTMESH_CLUSTER" not in os.environ
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
