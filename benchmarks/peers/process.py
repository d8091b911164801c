"""A peer in a process of the peers' environment, seen from the benchmark's side."""

import json
import os
import selectors
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.jobs import Load, Probe, Timing

ROOT = Path(__file__).parents[2]
ANSWER_TIMEOUT = 1800.0
CLOSE_TIMEOUT = 30.0


class PeerError(Exception):
    """A peer ended, or said what went wrong."""


@dataclass(frozen=True, slots=True)
class PeersEnvironment:
    """Where peers run: their own interpreter, a number of threads, a folder for what they log, and the
    seconds that an answer may take."""

    python: Path
    threads: int
    logs: Path
    answer_timeout: float = ANSWER_TIMEOUT

    def command(self, module: str, options: Mapping[str, object]) -> list[str]:
        return [str(self.python), "-P", "-m", f"benchmarks.peers.{module}", json.dumps(options)]

    def variables(self) -> dict[str, str]:
        """Nothing is looked up on a network, and no library starts more threads than it is told to."""
        told = {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        return {**os.environ, **told}


class PeerProcess:
    """One question, one answer. Between them it keeps its model and waits on its input."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
        self._name = name
        self._process = process
        self._log = log
        self._timeout = timeout
        self.version: str = self._answer()["version"]

    def choose(self, load: Load) -> str:
        """Tries every way it knows; what is measured later is the fastest."""
        way: str = self._ask({"kind": "choose", "load": asdict(load)})["way"]
        return way

    def measure(self, load: Load) -> tuple[Timing, str]:
        """Returns as well in which way it was measured."""
        answer = self._ask({"kind": "measure", "load": asdict(load)})
        way: str = answer.pop("way")
        return Timing(**answer), way

    def probe(self, prompt: Sequence[int], new_tokens: int) -> Probe:
        return Probe(**self._ask({"kind": "probe", "prompt": list(prompt), "new_tokens": new_tokens}))

    def _ask(self, job: Mapping[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout):
                # What hangs may compute: it must not slow down the others.
                self._process.kill()
                raise PeerError(f"{self._name}: no answer in {self._timeout:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise PeerError(f"{self._name}: {line[:80]!r} is no answer") from None
        if "error" in answer:
            raise PeerError(f"{self._name}: {answer['error']}")
        return answer

    def _ended(self) -> PeerError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_TIMEOUT)
        code = self._process.returncode
        by = f" by {signal.Signals(-code).name}" if code is not None and code < 0 else ""
        return PeerError(f"{self._name} has ended{by}: {last_line(self._log)}")


@contextmanager
def peer(
    environment: PeersEnvironment, name: str, module: str, options: Mapping[str, object]
) -> Iterator[PeerProcess]:
    """Ends with the block. Raises PeerError when it does not start."""
    log = environment.logs / f"{name}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            environment.command(module, {**options, "threads": environment.threads}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
            env=environment.variables(),
        )
    # Its input ends here, and with it the peer; a peer that does not leave is ended.
    with process:
        try:
            yield PeerProcess(name, process, log, environment.answer_timeout)
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(CLOSE_TIMEOUT)
        finally:
            process.kill()


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
