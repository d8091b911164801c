"""Heads and joiners as processes, on addresses of this machine's loopback device."""

import os
import selectors
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from expert_workers.tls import FOLDER_VARIABLE
from tests.integration.processes import COMMAND
from tests.integration.ray_cluster import free_port

# Ray goes to another address than 127.0.0.1.
HEAD_ADDRESS = "127.0.0.9"
START = 120.0


class Machine:
    """`expertmesh head` or `join` in a process of its own. A context manager, whose end leaves nothing."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *arguments: str,
        prefix: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder / name
        self._log_path = folder / f"{name}.log"
        self._log = self._log_path.open("wb")
        command = [*prefix, *COMMAND, *arguments, f"--folder={self.folder}"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **(env or {})},
            process_group=0,
        )
        self.ready_line = ""

    @property
    def log(self) -> str:
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self, timeout: float = START) -> Self:
        """Fails with the log when the process ends first."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(timeout), f"not ready after {timeout} s:\n{self.log}"
        self.ready_line = self.process.stdout.readline().decode()
        assert self.ready_line.startswith("READY "), f"{self.ready_line!r}\n{self.log}"
        return self

    def value(self, name: str) -> str:
        """Of the READY line."""
        return dict(part.split("=", 1) for part in self.ready_line.split()[1:])[name]

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 60.0) -> int:
        """The exit code after a signal; Ctrl-C of a terminal is for the whole group of processes."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return self.process.wait(timeout)

    def pids(self) -> set[int]:
        """All processes of this machine's node, whichever their parent is, by what they have inherited."""
        return set(_with_variable(f"{FOLDER_VARIABLE}={self.folder}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._log.close()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _with_variable(wanted: str) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if wanted.encode() in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)


def ports_of_a_node() -> list[str]:
    """Options of free ports: nodes of one machine share its ports."""
    first = _free_range(6)
    workers, data = _free_range(20), _free_range(20)
    return [
        f"--node-port={first}",
        f"--worker-ports={workers}-{workers + 19}",
        f"--data-ports={data}-{data + 19}",
    ]


_next_port = 10_000 + (os.getpid() % 100) * 200


def _free_range(count: int) -> int:
    """Below those that the system gives to others. A process of tests has some of its own."""
    global _next_port
    first, _next_port = _next_port, _next_port + count
    return first


@contextmanager
def head(folder: Path, *arguments: str, name: str = "head") -> Iterator[Machine]:
    ports = [f"--port={free_port()}", f"--enrol-port={free_port()}", *ports_of_a_node()]
    address = [] if any(each.startswith("--address") for each in arguments) else [f"--address={HEAD_ADDRESS}"]
    with Machine(name, folder, "head", *address, *ports, *arguments) as machine:
        yield machine


def join(folder: Path, of: Machine, number: int, *arguments: str) -> Machine:
    """The machine at 127.0.0.NUMBER joins the head `of`."""
    token = (
        []
        if any(each.startswith("--token-file") for each in arguments)
        else [f"--token-file={of.value('token')}"]
    )
    where = [of.value("enrol"), *token, f"--address=127.0.0.{number}"]
    return Machine(f"node-{number}", folder, "join", *where, *ports_of_a_node(), *arguments)
