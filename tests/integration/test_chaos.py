"""`expertmesh chaos` against a real server: a worker is killed, and nobody loses anything."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.processes import is_running
from expertmesh import ControlClient
from tests.integration.processes import COMMAND, DEMO_CHECKPOINT, Server, run_command

pytestmark = [pytest.mark.timeout(240), pytest.mark.chaos]

# Small: two cores are enough for it.
SCENARIO = """
baseline = 1.0
settle = 0.5
[setup]
workers = 3
replicas = 2
[load]
streams = 8
requests = 8
[[event]]
do = "{do}"
rank = 1
after_tokens = 50
[expect]
restored_within = 60
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("chaos") / "log"
    with Server(str(DEMO_CHECKPOINT), "--workers=3", "--replicas=2", "--call-timeout=5", log=log) as server:
        server.wait_ready()
        yield server


def arguments(server: Server, folder: Path, text: str) -> list[str]:
    path = folder / "scenario.toml"
    path.write_text(text)
    return ["chaos", server.address, "--control", server.address_of("control"), "--scenario", str(path)]


def test_a_killed_worker(server: Server, tmp_path: Path) -> None:
    text = SCENARIO.format(do="kill") + "min_worker_losses = 1\n"
    result = run_command(*arguments(server, tmp_path, text), timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["passed"]
    assert (found["requests"]["lost"], found["changed_tokens"]) == (0, 0)
    assert found["requests"]["sent"] == found["requests"]["completed"] > 0
    (fault,) = found["faults"]
    assert (fault["do"], fault["rank"]) == ("kill", 1)
    assert f"process {fault['pid']} gone" in fault["proof"]
    assert fault["restored_after_seconds"] > 0
    assert found["during"]["gap_seconds"]["count"] > 0, "the load ran through it"


def test_an_expectation_that_fails_is_exit_code_1(server: Server, tmp_path: Path) -> None:
    text = SCENARIO.format(do="stall") + "min_worker_losses = 5\n"
    result = run_command(*arguments(server, tmp_path, text), timeout=200)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAILED: the server gave up workers 0 times, at least 5 were due" in result.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_when_interrupted_it_leaves_no_worker_stopped(
    server: Server, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    text = SCENARIO.format(do="stall").replace("rank = 1", "rank = 1\nseconds = 3600")
    command = [*COMMAND, *arguments(server, tmp_path, text)]
    with ControlClient(server.address_of("control")) as control:
        before = {worker.rank: worker.pid for worker in control.topology()}
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
            while is_running(before[1]):
                assert process.poll() is None
                time.sleep(0.005)
            os.kill(process.pid, number)
            assert process.wait(60) == code
        assert is_running(before[1]) or not Path(f"/proc/{before[1]}").exists()
