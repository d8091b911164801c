"""The units of deploy/systemd: what systemd says of them, and what our own parser says of their commands."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from expertmesh.command_line import full_parser
from tests.deploy.tools import Ran, deployed, named, run

pytestmark = pytest.mark.deploy

UNITS = deployed("*.service")
PROGRAM = "/opt/expertmesh/bin/expertmesh"
# In tenths. The bar is 4; 9.6 is a service that says nothing.
EXPOSURE = 20
# What an administrator writes into the files of variables.
VARIABLES = {"HEAD": "10.0.0.4:6380", "MODEL": "model", "CREDENTIALS_DIRECTORY": "/run/credentials/x"}


def checked(path: Path, folder: Path, text: str | None = None) -> Ran:
    """`systemd-analyze verify` of a unit, in a folder with the others, whose program is there."""
    for unit in UNITS:
        said = unit.read_text(encoding="utf-8") if unit != path or text is None else text
        (folder / unit.name).write_text(said.replace(PROGRAM, sys.executable))
    return run("systemd-analyze", "verify", folder / path.name)


def exposure(path: Path) -> Ran:
    return run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", path)


def command_of(text: str) -> list[str]:
    """The words of ExecStart, as systemd makes them."""
    (line,) = re.findall(rf"^ExecStart={PROGRAM} (.+)$", text, re.MULTILINE)
    words = [word for word in shlex.split(line) if not re.fullmatch(r"\$\w+", word)]
    return [re.sub(r"\$\{(\w+)\}", lambda found: VARIABLES[found[1]], word) for word in words]


@pytest.mark.parametrize("path", named(UNITS))
def test_systemd_has_nothing_to_say_of_a_unit(path: Path, tmp_path: Path) -> None:
    found = checked(path, tmp_path)
    assert (found.code, found.output) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("ProtectSystem=strict", "ProtectSistem=strict", "Unknown key 'ProtectSistem'"),
        ("KillMode=mixed", "KillMode=mild", "Failed to parse kill mode"),
        ("TimeoutStopSec=", "TimeoutStopSec=x", "Failed to parse time value"),
        ("ExecStart=/opt", "ExecStart=opt", "Neither a valid executable name nor an absolute path"),
    ],
)
@pytest.mark.parametrize("path", named(UNITS))
def test_a_mistake_in_a_unit_is_found(path: Path, tmp_path: Path, old: str, new: str, finding: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    assert finding in checked(path, tmp_path, text.replace(old, new)).output


@pytest.mark.parametrize("path", named(UNITS))
def test_a_unit_is_closed(path: Path, tmp_path: Path) -> None:
    found = exposure(path)
    assert found.code == 0, found.output
    # What systemd reckons offline leaves the user out.
    text = path.read_text(encoding="utf-8")
    assert "\nUser=expertmesh\n" in text
    for lines in (r"Protect\w+=.*", r"SystemCallFilter=.*|Restrict\w+=.*"):
        opened = tmp_path / path.name
        opened.write_text(re.sub(rf"^({lines})\n", "", text, flags=re.MULTILINE))
        assert opened.read_text() != text
        assert exposure(opened).code == 1, lines


def test_units_are_closed_alike() -> None:
    closed = [unit.read_text(encoding="utf-8").partition("# Nothing of the machine")[2] for unit in UNITS]
    kept = [[line for line in each.splitlines() if "MemoryDenyWriteExecute" not in line] for each in closed]
    assert len(kept) == 3
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) > 20


@pytest.mark.parametrize("path", named(UNITS))
def test_our_parser_takes_the_command_of_a_unit(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text(encoding="utf-8")
    parser = full_parser()
    parser.parse_args(command_of(text))
    with pytest.raises(SystemExit):
        parser.parse_args([*command_of(text), "--no-such-option"])
    assert "--no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize("path", named(UNITS))
def test_a_unit_waits_longer_for_its_end_than_its_command_takes(path: Path) -> None:
    """What is killed before it has drained has lost requests."""
    text = path.read_text(encoding="utf-8")
    given = full_parser().parse_args(command_of(text))
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    drain = {
        "head": 0.0,
        "join": getattr(given, "leave_timeout", 0.0),
        "serve": getattr(given, "withdrawal_grace", 0.0) + getattr(given, "drain_timeout", 0.0),
    }[command_of(text)[0]]
    assert float(seconds) >= drain + 20
