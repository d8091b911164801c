from pathlib import Path

import pytest

from coordinator.config.workers import WorkersConfig
from coordinator.server.open_fleet import data_tls
from expert_workers.dispatch.combine import Combine
from expert_workers.dispatch.options import OnLoss
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


def test_without_workers_here_there_may_be_some_on_each_machine() -> None:
    assert not parse("--workers", "0").has_workers
    assert parse("--workers", "0", "--workers-per-node", "1").has_workers
