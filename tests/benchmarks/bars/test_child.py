"""A benchmark in a process of its own: its result, or why there is none."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bars import child

MODULE = "tests.benchmarks.bars.says"


def run(
    tmp_path: Path, *lines: str, code: int = 0, timeout: float = 60.0
) -> tuple[dict[str, object], list[str]]:
    said: list[str] = []
    return child.run([MODULE, str(code), *lines], tmp_path / "log", said.append, timeout), said


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    assert run(tmp_path, "one", "", "two", '{"ratio": 2}') == ({"ratio": 2}, ["one", "two"])


def test_a_benchmark_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(child.RowError, match=r"^it ended with code 3: it went wrong$"):
        run(tmp_path, "one", "error: it went wrong", code=3)


@pytest.mark.parametrize("lines", [(), ("one",), ("[1]",), ('{"ratio": 2}', "and more")])
def test_a_last_line_that_is_no_result(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(child.RowError, match="its last line is no result"):
        run(tmp_path, *lines)


def test_a_benchmark_that_is_killed_says_its_signal(tmp_path: Path) -> None:
    with pytest.raises(child.RowError, match=r"it ended by SIGKILL: it said nothing"):
        run(tmp_path, code=-9)


def test_a_benchmark_that_hangs_is_interrupted_and_may_clean_up(tmp_path: Path) -> None:
    with pytest.raises(child.RowError, match=r"no result within 1 s"):
        run(tmp_path, f"clean={tmp_path / 'cleaned'}", timeout=1.0)
    assert (tmp_path / "cleaned").read_text(encoding="utf-8") == "interrupted"


def test_a_benchmark_that_only_closes_its_output_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "END_TIMEOUT", 2.0)
    with pytest.raises(child.RowError, match="it has closed its output and does not end"):
        run(tmp_path, "mute", f"clean={tmp_path / 'cleaned'}")
    assert (tmp_path / "cleaned").read_text(encoding="utf-8") == "interrupted"


def test_our_own_interruption_reaches_it(tmp_path: Path) -> None:
    """As Ctrl-C of only the table would: what it has started must not stay behind."""
    command = [MODULE, "0", "begun", f"clean={tmp_path / 'cleaned'}"]
    code = f"child.run({command!r}, Path({str(tmp_path / 'log')!r}), lambda line: print(line, flush=True))"
    imports = "from pathlib import Path; from benchmarks.bars import child; "
    with subprocess.Popen(
        [sys.executable, "-c", imports + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ours:
        assert ours.stdout is not None
        assert ours.stdout.readline() == "begun\n"
        ours.send_signal(signal.SIGINT)
        ours.communicate(timeout=60)
    assert (tmp_path / "cleaned").read_text(encoding="utf-8") == "interrupted"
