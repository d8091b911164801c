"""A real server in a process of its own, for benchmarks that measure it from outside."""

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import process_tree
from benchmarks.process_tree import Memory

ROOT = Path(__file__).parents[1]
START_TIMEOUT = 120.0
# What the processes of a server run.
ENGINE_MODULE, FRONT_MODULE = "coordinator.server.engine_process", "coordinator.server.front_process"


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """`pid`: of what was started. `address`: gRPC of generations; `control_address`: of operators;
    `http_address`: of OpenAI's API."""

    pid: int
    address: str
    control_address: str
    http_address: str = ""

    def pids(self) -> list[int]:
        """The process that was started, and all that it has started: engine, fronts, workers, Ray."""
        return [process.pid for process in process_tree.tree(self.pid)]

    def engine_pid(self) -> int:
        """Raises RuntimeError where there is not one, as right after its death."""
        pids = self._running(ENGINE_MODULE)
        if len(pids) != 1:
            raise RuntimeError(f"a server with {len(pids)} engines")
        return pids[0]

    def front_pids(self) -> list[int]:
        return self._running(FRONT_MODULE)

    def memory(self) -> Memory:
        """Of all processes together, as everything below."""
        return process_tree.memory(self.pids())

    def rss_bytes(self) -> int:
        return self.memory().rss

    def peak_rss_bytes(self) -> int:
        return process_tree.peak_rss(self.pids())

    def num_fds(self) -> int:
        return process_tree.num_fds(self.pids())

    def cpu_seconds(self) -> float:
        """What they have used so far."""
        return process_tree.cpu_seconds(self.pids())

    def _running(self, module: str) -> list[int]:
        return [process.pid for process in process_tree.tree(self.pid) if process.runs(module)]


def environment_of(tree: Path) -> dict[str, str]:
    """In which a tree's modules are found before those that are installed; an older one has no client/."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "client")])}


def cli_module(tree: Path) -> str:
    """Where a tree has the command; 0.1.0 and older without a package for clients."""
    return "expertmesh.cli" if (tree / "client").is_dir() else "coordinator.cli"


@contextmanager
def serving(
    checkpoint: Path,
    arguments: Sequence[str],
    log: Path,
    timeout: float = START_TIMEOUT,
    tree: Path = ROOT,
) -> Iterator[ServerProcess]:
    """`expertmesh serve` of a tree until the block ends; RuntimeError with its log's end when it does not
    start."""
    command = [sys.executable, "-P", "-m", cli_module(tree), "serve", str(checkpoint)]
    command += [f"--{name}-address=127.0.0.1:0" for name in ("grpc", "http", "control")]
    command += ["--withdrawal-grace=0", *arguments]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, env=environment_of(tree), cwd=tree
        )
        try:
            ready = _ready_line(process, timeout)
            if not ready.startswith("READY "):
                raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")
            fields = dict(part.split("=", 1) for part in ready.split()[1:])
            yield ServerProcess(process.pid, fields["grpc"], fields["control"], fields["http"])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()


def _ready_line(process: subprocess.Popen[bytes], timeout: float) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(timeout):
            return ""
    return process.stdout.readline().decode()
