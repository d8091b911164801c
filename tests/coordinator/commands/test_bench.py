"""expertmesh bench: finds the benchmark and gives it the arguments that follow."""

import argparse
import sys
from pathlib import Path

import pytest

from coordinator.commands import bench
from moe_model.errors import ConfigError
from tests.integration.processes import run_command


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="expertmesh bench")
    bench.add_arguments(parser)
    return parser.parse_args(argv)


def test_help_says_what_each_measures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert {"bars", "engine", "serve", "dispatch", "families", "loading", "peers"} == set(bench.BENCHMARKS)
    for name, what in bench.BENCHMARKS.items():
        assert f"  {name} " in shown
        assert what in shown


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--workers", "0,2", "-h"], ["a", "--", "b"]])
def test_the_rest_is_the_benchmarks_own(arguments: list[str]) -> None:
    args = parse("serve", *arguments)
    assert (args.name, args.arguments) == ("serve", arguments)


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["--workers", "0"]])
def test_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    assert end.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("place", ["engine.py", "engine/__main__.py"])
def test_a_module_or_a_package(tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigError, match=r"benchmarks\.engine is not installed"):
        bench.command("engine", [], tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    command = bench.command("engine", ["--batches", "1"], tmp_path)
    assert command == [sys.executable, "-P", "-m", "benchmarks", "engine", "--batches", "1"]


def test_it_takes_the_place_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("os.execv", lambda program, arguments: ran.append((program, arguments)))
    bench.run(parse("serve", "--clients", "1"))
    assert ran == [(sys.executable, bench.command("serve", ["--clients", "1"]))]


def test_as_a_user_runs_it() -> None:
    """The benchmark's own error and exit code."""
    result = run_command("bench", "serve", "--rounds", "x")
    assert result.returncode == 2
    assert "argument --rounds: invalid int value" in result.stderr
