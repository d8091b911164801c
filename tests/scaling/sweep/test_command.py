"""`expertmesh sweep` as a process: a run that is killed leaves nothing behind, and goes on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.server_process import ROOT, environment_of
from expert_workers.processes import Process, descendants, is_running, wait_gone
from expertmesh.cli import main

EXPERIMENT = """
name: tiny
rounds: 2
warmup: 2
base:
  model: {model}
  dtype: float32
  load: {{prompt_tokens: 8, output_tokens: 8, num_requests: 8}}
sweep:
  workers: [0, 1]
  load.concurrency: [1, 4]
cells:
  - {{workers: 1, load.concurrency: 2, serve: {{max-batch: minus-one}}}}
"""
# A busy machine takes ten times as long as an idle one to start Ray.
_TIMEOUT = 400.0


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(EXPERIMENT.format(model=ROOT / "demo" / "checkpoint"))
    return path


@contextmanager
def sweeping(experiment: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The command, which has ended when the block has."""
    command = [sys.executable, "-P", "-m", "expertmesh.cli", "sweep", str(experiment), *arguments]
    process = subprocess.Popen(
        [*command, "--out", str(experiment.parent / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment_of(ROOT),
        cwd=ROOT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_line(process: "subprocess.Popen[str]", is_it: Callable[[str], bool]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if is_it(line):
            return
    raise AssertionError("the sweep ended before it said that")


def observations(experiment: Path) -> list[dict[str, object]]:
    path = experiment.parent / "out" / "observations.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def below(process: "subprocess.Popen[str]") -> frozenset[Process]:
    return frozenset(each for each in descendants(process.pid) if is_running(each))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_leaves_nothing_and_goes_on(experiment: Path, number: signal.Signals) -> None:
    """The tokens of all cells agree, or the exit code of what goes on would have another reason."""
    with sweeping(experiment) as process:
        wait_line(process, lambda line: line.startswith("[2/10]"))
        found = below(process)
        process.send_signal(number)
        code = process.wait(_TIMEOUT)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert wait_gone(found, _TIMEOUT) == frozenset()
    before = observations(experiment)
    assert 2 <= len(before) < 10

    with sweeping(experiment) as process:
        _, said = process.communicate(timeout=_TIMEOUT)
    assert process.returncode == 1
    assert "--resume" in said

    with sweeping(experiment, "--resume") as process:
        shown, said = process.communicate(timeout=_TIMEOUT)
    assert process.returncode == 1, said
    assert "no result: checkpoint, 1 workers, 2 at once" in said
    assert "other tokens" not in said
    assert "report.html" in shown
    found_after = observations(experiment)
    assert found_after[: len(before)] == before
    ran = [(each["cell"], each["round"]) for each in found_after if each["failed"] is None]
    assert len(ran) == len(set(ran)) == 8
    assert_measured(next(each for each in found_after if each["failed"] is None))


def assert_measured(found: dict[str, object]) -> None:
    assert found["num_tokens"] == 64
    assert found["num_failed"] == 0
    assert isinstance(found["cpu_s"], dict)
    assert {"engine", "front", "load"} <= found["cpu_s"].keys()
    assert isinstance(found["split_ms"], dict)
    assert {"dispatch", "combine", "rest"} == found["split_ms"].keys()


def test_a_dry_run_shows_cells(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(experiment), "--dry-run", "--only", "4 at once"]) == 0
    *cells, last = capsys.readouterr().out.splitlines()
    assert len(cells) == 2
    assert "2 cells x 2 rounds, about" in last
    assert not os.path.exists(experiment.parent / "out")
