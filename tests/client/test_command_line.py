"""The command itself: what it says when it is asked wrongly. The sub-commands have their own tests."""

import shlex
import subprocess
import sys
from importlib import metadata

import pytest

from expertmesh.cli import main
from expertmesh.commands.table import COMMANDS
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
        (["serv"], "unknown command 'serv', did you mean 'serve'?"),
        (["heal"], "unknown command 'heal'"),
        (["help"], "unknown command 'help', did you mean '--help'?"),
        (["--verzion"], "unknown option '--verzion', did you mean '--version'?"),
        (["serve", "x", "--replica", "2"], "unknown option '--replica', did you mean '--replicas'?"),
        (["serve", "--wrokers", "2"], "unknown option '--wrokers', did you mean '--workers'?"),
        (["serve", "x", "--repl"], "did you mean '--replicas' or '--replace-workers'?"),
        (["generate", "x", "-prompt", "y"], "unknown option '-prompt', did you mean '--prompt'?"),
        (["scale", "h:1", "--worker=3"], "unknown option '--worker', did you mean '--workers'?"),
        (["experts", "lst", "h:1"], "'lst', did you mean 'list'?"),
        (
            ["experts", "list", "h:1", "--tsl"],
            "experts list: error: unknown option '--tsl', did you mean '--tls'?",
        ),
        (["keys", "nwe", "x"], "'nwe', did you mean 'new'?"),
        (["bench", "engin"], "'engin', did you mean 'engine'?"),
        (["serve", "x", "--dtype", "flaot32"], "--dtype: 'flaot32', did you mean 'float32'?"),
        (["serve", "x", "--dtype", "int4"], "--dtype: 'int4' is not one of float32, bfloat16"),
        (["serve", "x", "--context-overflow", "slied"], "'slied', did you mean 'slide'?"),
        (["serve", "x", "--generation-config", "modle"], "'modle', did you mean 'model'?"),
        (["inspect", "a", "b"], "unexpected argument 'b'"),
        (["inspect", "a", "--\x1b[31m\n" + "x" * 500], "unknown option"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert part in error
    assert error.removesuffix("\n").isprintable()
    assert len(error) < 400


@pytest.mark.parametrize("arguments", [["--replica=2"], ["--work", "1"], ["--dtyp=float32"]])
def test_half_of_a_name_is_no_option(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", "there/is/none", *arguments])
    assert end.value.code == 2
    assert "unknown option" in capsys.readouterr().err


def test_what_follows_a_double_dash_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--", "--there-is-none"]) == 1
    assert "--there-is-none" in capsys.readouterr().err


def test_an_error_of_ours_is_one_line() -> None:
    assert_one_line_error(run_command("inspect", "there/is/none"), "there/is/none")


def test_what_a_failed_server_leaves_of_threads_does_not_meet_the_interpreters_end() -> None:
    """Ray's may wait for a head that is gone, or crash there."""
    program = (
        "import atexit, os, sys; from expertmesh.cli import main; atexit.register(os._exit, 9); "
        "sys.argv = ['expertmesh', 'serve', 'there/is/none']; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("expertmesh serve: error: there/is/none: ")


def test_the_version_is_the_distributions() -> None:
    result = run_command("--version")
    assert result.returncode == 0
    assert result.stdout.strip() == metadata.version("expertmesh")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
@pytest.mark.parametrize("arguments", ["keys new x", "inspect there/is/none", "serv"])
def test_closed_streams_are_no_traceback(closed: str, arguments: str) -> None:
    command = ["bash", "-c", f"{shlex.join(COMMAND)} {arguments} {closed}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in result.stderr
    assert result.returncode == {"keys new x": 0, "inspect there/is/none": 1, "serv": 2}[arguments]


@pytest.mark.parametrize("arguments", [["inspect", str(DEMO_CHECKPOINT)], ["--help"], ["serve", "--help"]])
def test_a_reader_that_leaves_is_no_traceback(arguments: list[str]) -> None:
    arguments = [*COMMAND, *arguments]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        # argparse, which prints the help, does not say that there was a reader less.
        assert process.wait(60) == 1 or "--help" in arguments
