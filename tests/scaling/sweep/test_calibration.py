"""Passes of the probe between rounds: where there are none, and where one fails."""

import sys
from pathlib import Path

import pytest

from moe_model.errors import ConfigError
from scaling.machines import ProductRate
from scaling.probe.passes import Pass, read_pass, write_pass
from scaling.sweep import calibration
from scaling.sweep.calibration import FOLDER, has_pass, measure_pass, measured_machines


def instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """What runs in the place of a pass; its last argument is the file."""
    monkeypatch.setattr(calibration, "guarded", lambda command: [sys.executable, "-c", code, command[-1]])


def test_a_pass_is_a_file_of_its_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "import sys; open(sys.argv[1], 'w').close()")
    measure_pass(tmp_path, 3)
    assert [has_pass(tmp_path, number) for number in (2, 3)] == [False, True]


def test_a_pass_that_fails_is_said_and_none_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instead(monkeypatch, "print('a step failed'); raise SystemExit(3)")
    measure_pass(tmp_path, 0)
    assert "before round 1 failed: a step failed" in capsys.readouterr().err
    assert not has_pass(tmp_path, 0)


def test_a_pass_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As the guard does: its input ends, and so does it.
    instead(monkeypatch, "import sys; sys.stdin.read()")
    monkeypatch.setattr(calibration, "_TIMEOUT", 0.2)
    measure_pass(tmp_path, 0)
    assert "had not ended after 0 s" in capsys.readouterr().err


def test_without_passes_nothing_is_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pass of the probe"):
        measured_machines(tmp_path)


def test_a_pass_is_read_as_it_was_written_and_what_is_none_is_named(tmp_path: Path) -> None:
    found = Pass(0.5, 20.0, 200.0, (ProductRate("bfloat16", 1, 10.0, 5.0),), 1e-5, (), (), ())
    (tmp_path / FOLDER).mkdir()
    path = tmp_path / FOLDER / "0000.msgpack"
    write_pass(path, found)
    assert read_pass(path) == found
    path.write_bytes(b"no pass")
    with pytest.raises(ConfigError, match=r"0000\.msgpack: not a pass"):
        measured_machines(tmp_path)
