"""expertmesh chaos: its arguments, its errors, and how it finds what it runs."""

import argparse
from pathlib import Path

import pytest

from coordinator.commands import chaos
from moe_model.errors import ConfigError
from tests.integration.processes import assert_one_line_error, run_command


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="expertmesh chaos")
    chaos.add_arguments(parser)
    return parser.parse_args(argv)


def test_help_says_what_each_scenario_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    found = dict(chaos.scenarios())
    assert "kill-one" in found
    for name, about in found.items():
        assert f"  {name} " in shown
        assert about in shown


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["host:1"],
        ["host", "--scenario", "kill-one"],
        ["host:0", "--scenario", "kill-one"],
        [":1", "--scenario", "kill-one"],
        ["host:1", "--scenario", "kill-one", "--seed", "-1"],
        ["host:1", "--scenario", "kill-one", "--duration", "0"],
        ["host:1", "--scenario", "kill-one", "--streams", "0"],
        ["host:1", "--scenario", "kill-one", "--control", "here"],
    ],
)
def test_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    assert end.value.code == 2
    assert capsys.readouterr().err


def test_without_the_package_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="chaos is not installed"):
        chaos.run(parse("host:1", "--scenario", "kill-one"))


def test_scenarios_are_found_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'nothing' is neither a file nor one of .*kill-one"):
        chaos.run(parse("host:1", "--scenario", "nothing"))


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("nothing", "'nothing' is neither"),
        ("soak.toml", "soak.toml: No such file"),
        ("kill-one", "UNAVAILABLE"),
    ],
)
def test_errors_are_one_line(scenario: str, said: str) -> None:
    """Port 1 is nobody's."""
    result = run_command("chaos", "127.0.0.1:1", "--scenario", scenario)
    assert_one_line_error(result, "expertmesh chaos: error:", said)
    assert result.returncode == 1
