"""How a benchmark ends: the line, and the two files."""

import argparse
import json
import re
from pathlib import Path

import pytest

from benchmarks.report import add_out_argument, reporting


def run(out: Path | None) -> None:
    with reporting("service.prefix", out, ["prefix", "--repeats", "2"]) as report:
        print("for people")
        report.finish({"ratio": 3.5})


def test_the_last_line_is_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    run(None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "for people"
    assert json.loads(lines[-1]) == {"benchmark": "service.prefix", "ratio": 3.5}


def test_two_files_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    run(folder)
    kept, text = sorted(folder.iterdir())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}-service\.prefix\.json", kept.name)
    assert text.name == kept.name.removesuffix("json") + "txt"
    record = json.loads(kept.read_text(encoding="utf-8"))
    assert record["result"] == {"benchmark": "service.prefix", "ratio": 3.5}
    assert record["manifest"]["command"] == "python -m benchmarks.service prefix --repeats 2"
    assert record["manifest"]["threads"]["torch"] >= 1
    assert text.read_text(encoding="utf-8").endswith("for people\n")
    assert "ratio" not in text.read_text(encoding="utf-8")


def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> None:
        with reporting("engine", tmp_path, []) as report:
            report.finish({})
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        failing()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_finished_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_machine_is_noted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for average, is_noted in ((0.0, False), (99.0, True)):
        monkeypatch.setattr("os.getloadavg", lambda average=average: (average, 0.0, 0.0))
        run(None)
        assert ("load average is 99.0" in capsys.readouterr().out) is is_noted


def test_the_argument() -> None:
    parser = argparse.ArgumentParser()
    add_out_argument(parser)
    assert parser.parse_args([]).out is None
    assert parser.parse_args(["--out", "a/b"]).out == Path("a/b")
