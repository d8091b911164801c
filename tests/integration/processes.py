"""Running the command as a user does: real processes, real signals, real ports."""

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks import process_tree

# What the processes of a server run.
ENGINE_MODULE, FRONT_MODULE = "coordinator.server.engine_process", "coordinator.server.front_process"
# Ports of their own, and no balancer that would have to hear of the end.
PORTS = [*(f"--{name}-address=127.0.0.1:0" for name in ("grpc", "http", "control")), "--withdrawal-grace=0"]
COMMAND = [sys.executable, "-m", "expertmesh.cli"]
STARTING = re.compile(r"(20\d\d-\d\d-\d\d \S+ INFO \S+: )?(starting|threads:) ")
DEMO_CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"


def run_command(
    *arguments: str, timeout: float = 120.0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `expertmesh ARGUMENTS` to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        check=False,
    )


def assert_one_line_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """A clear error: one line that names the thing, a code that is not 0, no traceback. What a server says
    of its start stands before."""
    assert result.returncode != 0, result.stdout
    lines = [line for line in result.stderr.strip().splitlines() if not STARTING.match(line)]
    assert len(lines) == 1, result.stderr
    assert ": error: " in lines[0]
    for part in parts:
        assert part in lines[0], lines[0]


class Server:
    """`expertmesh serve` in a process of its own. `prefix`: a command that turns into the one after it."""

    def __init__(
        self, *arguments: str, log: Path, env: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self._log_path = log
        self._log_file = log.open("wb")
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, "serve", *PORTS, *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log_file,
            env={**os.environ, **(env or {})},
        )
        self.ready_line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()
        self._log_file.close()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def log(self) -> str:
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def address(self) -> str:
        return self.address_of("grpc")

    def address_of(self, name: str) -> str:
        """HOST:PORT of grpc, http or control."""
        found = re.search(rf"\b{name}=(\S+)", self.ready_line)
        assert found, self.ready_line
        return found[1]

    def wait_ready(self, timeout: float = 150.0) -> str:
        """Waits for the READY line; fails with the log when the process ends first."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(timeout), f"not ready after {timeout} s:\n{self.log}"
        self.ready_line = self.process.stdout.readline().decode()
        assert self.ready_line.startswith("READY "), f"{self.ready_line!r}\n{self.log}"
        return self.ready_line

    def engine_pid(self) -> int:
        """Of the engine that runs; waits for one."""
        (pid,) = self._pids_of(ENGINE_MODULE, 1)
        return pid

    def front_pids(self, number: int = 1) -> list[int]:
        """Of the fronts that run; waits for so many."""
        return self._pids_of(FRONT_MODULE, number)

    def kill_whole(self) -> None:
        """SIGKILL to launcher, engine and fronts at once, as a machine's end: none of them tidies up."""
        pids = [self.process.pid, *self._running(ENGINE_MODULE), *self._running(FRONT_MODULE)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)
        self.process.wait(30)

    def _pids_of(self, module: str, number: int, timeout: float = 60.0) -> list[int]:
        deadline = time.monotonic() + timeout
        while len(pids := self._running(module)) != number:
            assert time.monotonic() < deadline, f"{len(pids)} processes run {module}:\n{self.log}"
            time.sleep(0.01)
        return pids

    def _running(self, module: str) -> list[int]:
        return [each.pid for each in process_tree.tree(self.process.pid) if each.runs(module)]

    def stop(self, timeout: float = 60.0) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


def children(pid: int) -> set[int]:
    """All processes below a process, by pid."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


def wait_gone(pids: Sequence[int] | set[int], timeout: float = 10.0) -> set[int]:
    """Waits until none of the processes runs; returns those that still do."""
    deadline = time.monotonic() + timeout
    while True:
        left = {pid for pid in pids if _is_running(pid)}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def unmapped(files: set[Path]) -> set[Path]:
    """Those that are there and that no process has in its memory."""
    used: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps") if files else ():
        with suppress(OSError):
            used.update(line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines())
    return {file for file in files if file.exists() and str(file) not in used}


def stop(pid: int, timeout: float = 10.0) -> None:
    """SIGSTOP, and back when every thread has stopped: one on another core goes on for some microseconds,
    which is enough to answer a call."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + timeout
    tasks = Path(f"/proc/{pid}/task")
    while any(_state(task) != "T" for task in tasks.iterdir()):
        assert time.monotonic() < deadline, f"process {pid} did not stop"


def _state(task: Path) -> str:
    """After the name, which stands in parentheses and may hold anything."""
    return (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
