"""The whole table: rows one after the other, and what is said of those that have no figures."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from benchmarks.bars.__main__ import run
from benchmarks.bars.figure import Bar, Figure
from benchmarks.bars.other_work import cores_in_use
from benchmarks.bars.rows import ROWS, Found, Row
from benchmarks.report import Report, reporting
from tests.sources import ROOT

SAYS = ("tests.benchmarks.bars.says",)
ARGUMENTS = argparse.Namespace(quick=False, beside=None)


def _read(found: Found) -> Iterator[Figure]:
    for number in found["numbers"]:
        yield Figure(Bar(f"row {number}", "at least", 2.0), (number,))


def row(*lines: str, code: int = 0) -> Row:
    return Row((*SAYS, str(code)), lines, (), _read)


def test_rows_that_fail_or_compare_nothing_are_lines_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: Mapping[str, Row] = {
        "bad": row("error: no luck", code=3),
        "bare": row('{"numbers": []}'),
        "good": row("people", '{"numbers": [1.0, 2.0]}'),
    }
    with reporting("bars", tmp_path, []) as report:
        assert not run(ARGUMENTS, rows, report)
    printed = capsys.readouterr().out.splitlines()
    assert "  people" in printed
    table = printed[[line.startswith("figure ") for line in printed].index(True) :]
    assert [line.split()[-1] for line in table[1:3]] == ["MISSED", "met"]
    assert table[3] == "bad: no figures: it ended with code 3: no luck"
    assert table[4].startswith("bare: nothing to compare with")
    bad, bare, good = json.loads(table[5])["rows"]
    assert (bad["failure"], bare["failure"], good["failure"]) == (bad["failure"], None, None)
    assert [each["verdict"] for each in good["figures"]] == ["MISSED", "met"]
    assert good["result"] == {"numbers": [1.0, 2.0]}
    assert good["command"] == 'python -m tests.benchmarks.bars.says 0 people {"numbers": [1.0, 2.0]}'
    assert good["cores_in_use_before"] >= 0
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".txt"]


def test_all_is_well_when_every_row_has_a_result() -> None:
    assert run(ARGUMENTS, {"good": row('{"numbers": [1.0]}')}, Report("bars", []))


def test_who_computes_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=-1) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        found = cores_in_use(0.5)
        busy.kill()
    assert found > 0.3


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ROWS)
def test_a_row_in_miniature(name: str, tmp_path: Path) -> None:
    """The real benchmark in seconds, whose result has all figures of its row."""
    command = ["benchmarks", "bars", "--quick", "--only", name, "--out", str(tmp_path)]
    beside = ["--beside", str(ROOT)] if ROWS[name].takes_beside else []
    result = subprocess.run(
        [sys.executable, "-m", *command, *beside], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    kept, _ = sorted(tmp_path.iterdir())
    (found,) = json.loads(kept.read_text(encoding="utf-8"))["result"]["rows"]
    assert found["row"] == name
    assert found["figures"]
