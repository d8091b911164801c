"""The command itself: what it says when it is asked wrongly. The sub-commands have their own tests."""

import subprocess
from importlib import metadata

import pytest

from coordinator.cli import COMMANDS, main
from tests.integration.processes import COMMAND, DEMO_CHECKPOINT, assert_one_line_error, run_command


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert f"usage: expertmesh {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nonsense"], "nonsense"),
        ([], "command"),
        (["serve"], "CHECKPOINT"),
        (["serve", "x", "--workers", "-1"], "--workers"),
        (["serve", "x", "--workers", "2.5"], "--workers"),
        (["serve", "x", "--call-timeout", "nan"], "--call-timeout"),
        (["generate", "x"], "--prompt"),
        (["generate", "x", "--prompt", "a", "--token-ids", "1"], "--token-ids"),
        (["generate", "x", "--token-ids", "1,x"], "--token-ids"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert part in error


def test_an_error_of_ours_is_one_line() -> None:
    assert_one_line_error(run_command("inspect", "there/is/none"), "there/is/none")


def test_the_version_is_the_distributions() -> None:
    result = run_command("--version")
    assert result.returncode == 0
    assert result.stdout.strip() == metadata.version("expertmesh")


def test_a_reader_that_leaves_is_no_traceback() -> None:
    arguments = [*COMMAND, "inspect", str(DEMO_CHECKPOINT)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1
