"""Passes of the probe between the rounds of an experiment, so that a machine that drifts is known as it was
while cells were measured.

What is measured are steps of models of the probe's own: no cell is calibrated on.
"""

import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.manifest import commit
from benchmarks.server_process import ROOT, environment_of
from moe_model.errors import ConfigError
from scaling.machines import Machines
from scaling.probe.local import machine_of
from scaling.probe.passes import depth_between_rounds, read_pass
from scaling.sweep.experiment import Plan
from scaling.sweep.guard import end, guarded
from scaling.sweep.local import last_words

# In the place of a file of machines.
MEASURED = "measured"
FOLDER = "passes"
_TIMEOUT = 900.0


def has_pass(results: Path, number: int) -> bool:
    return _file(results, number).exists()


def passes_left(plan: Plan, results: Path, rounds: Iterable[int]) -> int:
    """How many passes are to be taken before these rounds."""
    if plan.experiment.machines != MEASURED:
        return 0
    return sum(not has_pass(results, number) for number in set(rounds))


def measure_pass(results: Path, number: int) -> None:
    """Before round `number`, or after the last. One that fails is said, and the others count."""
    path = _file(results, number)
    path.parent.mkdir(exist_ok=True)
    try:
        _measure(path, path.with_suffix(".log"))
    except RuntimeError as error:
        print(f"the pass of the probe before round {number + 1} failed: {error}", file=sys.stderr)


def _measure(path: Path, log: Path) -> None:
    """Raises RuntimeError."""
    command = [sys.executable, "-P", "-m", "scaling.probe.pass_process", str(path.resolve())]
    with log.open("wb") as output:
        process = subprocess.Popen(
            guarded(command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment_of(ROOT),
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"it had not ended after {_TIMEOUT:.0f} s ({log})") from None
        finally:
            end(process)
    if process.returncode:
        raise RuntimeError(f"{last_words(log)} ({log})")


def measured_machines(results: Path) -> Machines:
    """By the medians of all passes that are there. Raises ConfigError where there is none."""
    found = sorted((results / FOLDER).glob("*.msgpack"))
    if not found:
        raise ConfigError(f"{results / FOLDER}: no pass of the probe is there: --resume takes one")
    machine = machine_of("m0", depth_between_rounds(), list(map(read_pass, found)))
    measured = datetime.fromtimestamp(found[-1].stat().st_mtime, UTC)
    return Machines(
        (machine,), commit=str(commit(ROOT)["commit"]), date=measured.isoformat(timespec="seconds")
    )


def _file(results: Path, number: int) -> Path:
    return results / FOLDER / f"{number:04d}.msgpack"
