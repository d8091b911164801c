"""A stop at any moment ends with the promised code, in time, and leaves nothing: a few moments of those that
`python -m tests.integration.stops` goes through; and all of them, under the marker `slow`."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import process_tree
from tests.integration.processes import ENGINE_MODULE
from tests.integration.shared_cluster import Shared
from tests.integration.stops import GENERATE, SERVE, Run, changes, stop_change

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]


def wait_for_handlers_of_ray(run: Run) -> None:
    """Until Ray's library has put its own before ours: nobody else wants SIGTRAP."""
    deadline = time.monotonic() + 120
    while not any(_catches(pid, signal.SIGTRAP) for pid in _users_of_ray(run)):
        assert run.process.poll() is None, run.log.read_text()
        assert time.monotonic() < deadline, "Ray does not start"


def _users_of_ray(run: Run) -> list[int]:
    """The command itself, or the engine that it has started."""
    engines = [each.pid for each in process_tree.tree(run.process.pid) if each.runs(ENGINE_MODULE)]
    return [run.process.pid, *engines]


def _catches(pid: int, number: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [(SERVE, signal.SIGTERM, 0), (SERVE, signal.SIGHUP, 0), (GENERATE, signal.SIGINT, 130)],
    ids=["serve-TERM", "serve-HUP", "generate-INT"],
)
def test_while_ray_starts(command: tuple[str, ...], number: signal.Signals, code: int) -> None:
    """Where Ray's own handler would abort the process 3 s later."""
    run = Run(*command)
    wait_for_handlers_of_ray(run)
    stopped = run.stop("own", number, 0.0)
    assert not stopped.left, stopped
    assert stopped.code == code


def test_while_a_worker_starts_on_a_shared_cluster(shared_cluster: Shared) -> None:
    shared, actors = shared_cluster.cluster, shared_cluster.actors
    run = Run(*SERVE, f"--ray-address={shared.address}", env=shared.env)
    while not actors.names() and not run.is_ready:
        assert run.process.poll() is None, run.log.read_text()
    stopped = run.stop("shared", signal.SIGTERM, 0.0)
    stopped.left += actors.left()
    assert not stopped.left, stopped
    assert stopped.code == 0


def test_while_it_scales() -> None:
    with changes() as ways:
        stopped = stop_change("scale", ways["scale"], signal.SIGTERM, 0.3)
    assert not stopped.left, stopped
    assert stopped.code == 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_at_every_moment() -> None:
    subprocess.run([sys.executable, "-m", "tests.integration.stops"], check=True)
