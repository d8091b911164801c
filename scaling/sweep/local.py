"""Servers of this machine, with a Ray of their own or one that runs already."""

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks import process_tree
from benchmarks.server_process import ROOT, cli_module, environment_of
from chaos.processes import is_local
from expertmesh import ControlClient
from scaling.cell import Cell, Fault
from scaling.hosts.faults import worker_fault
from scaling.sweep.guard import end, guarded
from scaling.sweep.roles import roles
from scaling.topology import Running

START_TIMEOUT = 300.0
# Of a server's log, when it did not start.
_NUM_SAID = 300
_NAMESPACE = "expertmesh-sweep"


class LocalServer:
    """See scaling.topology.Running. Its processes are those below `pid`."""

    def __init__(self, pid: int, fields: Mapping[str, str]) -> None:
        self._pid = pid
        self.grpc_address = fields["grpc"]
        self.http_address = fields["http"]
        self.control_address = fields["control"]

    def pids(self) -> Mapping[str, Sequence[int]]:
        return roles(process_tree.tree(self._pid))

    def inject(self, fault: Fault) -> AbstractContextManager[None]:
        with ControlClient(self.control_address) as control:
            workers = {worker.rank: worker for worker in control.topology()}
        if fault.worker not in workers:
            raise RuntimeError(f"fault: there is no worker {fault.worker}")
        if not is_local(workers[fault.worker].host):
            raise RuntimeError(
                f"fault: worker {fault.worker} is on another machine, where nothing is done to it"
            )
        return worker_fault(fault, workers[fault.worker].pid)


class LocalTopology:
    """`expertmesh serve` as a process. `ray_address`: of a cluster on which its workers are started; None: a
    Ray of its own."""

    def __init__(self, ray_address: str | None = None) -> None:
        self._ray_address = ray_address

    def missing(self, cell: Cell) -> str:
        if cell.where == "cluster" and self._ray_address is None:
            return "where: cluster needs --ray-address"
        if cell.workers and cell.transport == "in-process" and cell.fault is not None:
            return "fault: workers of the transport in-process are no processes"
        return ""

    @contextmanager
    def start(self, cell: Cell, checkpoint: Path, arguments: Sequence[str], log: Path) -> Iterator[Running]:
        command = [sys.executable, "-P", "-m", cli_module(ROOT), "serve", str(checkpoint.resolve())]
        command += [f"--{name}-address=127.0.0.1:0" for name in ("grpc", "http", "control")]
        command += ["--withdrawal-grace=0", f"--workers={cell.workers}", *arguments]
        if self._ray_address is not None:
            command += [f"--ray-address={self._ray_address}", f"--ray-namespace={_NAMESPACE}"]
        with served(command, log) as server:
            yield server


@contextmanager
def served(command: list[str], log: Path, timeout: float = START_TIMEOUT) -> Iterator[LocalServer]:
    """A command that prints READY and its addresses, until the block ends. Raises RuntimeError."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            guarded(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment_of(ROOT),
            cwd=ROOT,
            # A terminal's Ctrl-C is for the sweep, which then ends the server itself.
            start_new_session=True,
        )
        try:
            line = _ready_line(process, timeout)
            if not line.startswith("READY "):
                raise RuntimeError(f"the server did not start: {last_words(log)}")
            yield LocalServer(process.pid, dict(part.split("=", 1) for part in line.split()[1:]))
        finally:
            end(process)
            assert process.stdout is not None
            process.stdout.close()


def last_words(log: Path) -> str:
    """The last line of a log that says something, and not more of it than a line holds."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line]
    return said[-1][-_NUM_SAID:] if said else "it said nothing"


def _ready_line(process: "subprocess.Popen[bytes]", timeout: float) -> str:
    """The first line of its output, or what came of it before its end or the deadline."""
    assert process.stdout is not None
    deadline, found = time.monotonic() + timeout, b""
    descriptor = process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while b"\n" not in found and selector.select(max(0.0, deadline - time.monotonic())):
            data = os.read(descriptor, 4096)
            if not data:
                break
            found += data
    return found.partition(b"\n")[0].decode(errors="replace")
