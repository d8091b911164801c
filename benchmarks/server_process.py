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

START_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """`address` is the gRPC one of generations, `control_address` that of operators."""

    pid: int
    address: str
    control_address: str

    def rss_bytes(self) -> int:
        return self._status("VmRSS")

    def peak_rss_bytes(self) -> int:
        return self._status("VmHWM")

    def num_fds(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def cpu_seconds(self) -> float:
        """What its process has used so far, without its workers'."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        # utime and stime, the 14th and 15th of all; the name before the bracket may hold spaces.
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
        raise ValueError(name)


@contextmanager
def serving(
    checkpoint: Path, arguments: Sequence[str], log: Path, timeout: float = START_TIMEOUT
) -> Iterator[ServerProcess]:
    """`expertmesh serve` until the block ends; RuntimeError with its log's end when it does not start."""
    command = [sys.executable, "-P", "-m", "expertmesh.cli", "serve", str(checkpoint)]
    command += [f"--{name}-address=127.0.0.1:0" for name in ("grpc", "http", "control")]
    command += ["--withdrawal-grace=0", *arguments]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
        try:
            ready = _ready_line(process, timeout)
            if not ready.startswith("READY "):
                raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")
            fields = dict(part.split("=", 1) for part in ready.split()[1:])
            yield ServerProcess(process.pid, fields["grpc"], fields["control"])
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
