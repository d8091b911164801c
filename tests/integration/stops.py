"""Stops commands at every moment of a start, and of a change, and says what came of it and what was left.

    python -m tests.integration.stops [--step 0.05] [--signals TERM,INT] [--cases own,shared,...] [--jobs 1]

prints a table and ends with 1 when anything was left, or a code or a time is not as promised. What is left is
found by session and by an environment variable of its own: others may run the same beside it.
"""

import argparse
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from expertmesh import ClientError, ControlClient
from moe_model.checkpoint.reader import Checkpoint
from tests.coordinator.exchanges import module_of
from tests.integration.processes import COMMAND, DEMO_CHECKPOINT, PORTS
from tests.integration.ray_cluster import Actors, Cluster, cluster

MARK = "EXPERTMESH_STOPS"
# Seconds in which a stopped command must have ended: its drain timeout.
BAR = 30.0
GONE = 20.0


@dataclass
class Stopped:
    """What came of one stop. `left` has what was found afterwards that should not be."""

    case: str
    number: signal.Signals
    moment: float
    code: int
    seconds: float
    left: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        known = {0, 128 + self.number, -self.number}
        odd = [] if self.code in known else [f"code {self.code}"]
        return [*odd, *([f"{self.seconds:.1f} s"] if self.seconds > BAR else []), *self.left]

    def __str__(self) -> str:
        left = ", ".join(self.left) or "-"
        name = self.number.name.removeprefix("SIG")
        return f"{self.case:<14} {name:<4} {self.moment:7.2f} {self.code:5d} {self.seconds:7.1f}  {left}"


class Run:
    """A command in a session of its own, with a temporary folder of its own."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
        (self.folder / "t").mkdir()
        self.mark = self.folder.name
        self.log = self.folder / "log"
        self._log = self.log.open("wb")
        temp = {"TMPDIR": str(self.folder / "t"), MARK: self.mark}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **(env or {}), **temp},
            start_new_session=True,
        )
        self.ready_line = b""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_ready(self, timeout: float = 120.0) -> None:
        assert self._ready.wait(timeout), self.log.read_text()
        assert self.ready_line.startswith(b"READY"), self.log.read_text()

    @property
    def is_ready(self) -> bool:
        return self.ready_line.startswith(b"READY")

    def address(self, name: str) -> str:
        pairs = [part.partition("=") for part in self.ready_line.decode().split()]
        return next(value for key, _, value in pairs if key == name)

    def stop(self, case: str, number: signal.Signals, moment: float) -> Stopped:
        """The signal, what comes of it, and what is left."""
        was_ready, started = self.is_ready, time.monotonic()
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            code = self.process.wait(4 * BAR)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        stopped = Stopped(case, number, moment, code, time.monotonic() - started)
        left = self._left()
        stopped.left += [f"process {pid} {name}" for pid, name in left.items()]
        self.process.kill()
        self._reader.join()
        if self.is_ready and not was_ready:
            stopped.left.append("served first")
        stopped.left += [f"folder {path.name}" for path in (self.folder / "t").iterdir()]
        text = self.log.read_text(errors="replace")
        stopped.left += [f"said {word!r}" for word in ("Traceback", "*** SIG") if word in text]
        self.close(keep_log=bool(stopped.problems))
        return stopped

    def close(self, *, keep_log: bool = False) -> None:
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if not keep_log:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()
        self._ready.set()

    def _left(self) -> dict[int, str]:
        deadline = time.monotonic() + GONE
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def _processes(self) -> dict[int, str]:
        """Of its session, or with its mark; the command itself not, nor zombies."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError):
                name, _, rest = (folder / "stat").read_text().rpartition(")")
                state, _, _, session = rest.split()[:4]
                is_its = int(session) == self.process.pid or self._is_marked(folder)
                if is_its and state not in "ZX" and int(folder.name) != self.process.pid:
                    found[int(folder.name)] = name.partition("(")[2]
        return found

    def _is_marked(self, folder: Path) -> bool:
        with suppress(OSError):
            return f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
        return False


Change = Callable[[ControlClient], object]
FILE = module_of(DEMO_CHECKPOINT, 0, 3)
SERVE = ("serve", str(DEMO_CHECKPOINT), *PORTS, "--workers=2")
DEMO = ("demo", str(DEMO_CHECKPOINT), "--workers=2", "--prompt=def", "--max-tokens=500")
GENERATE = ("generate", str(DEMO_CHECKPOINT), "--workers=2", "--prompt=def", "--max-tokens=500")


def stop_start(
    case: str, arguments: tuple[str, ...], number: signal.Signals, moment: float, env: dict[str, str]
) -> Stopped:
    """Stops a command `moment` seconds after its process began."""
    run = Run(*arguments, env=env)
    with suppress(subprocess.TimeoutExpired):
        run.process.wait(moment)
    return run.stop(case, number, moment)


def stop_change(case: str, change: Change, number: signal.Signals, moment: float) -> Stopped:
    """Stops a server `moment` seconds after an operator has asked for something. The operator is answered."""
    run = Run(*SERVE)
    try:
        run.wait_ready()
    except BaseException:
        run.close()
        raise
    with ControlClient(run.address("control")) as control, ThreadPoolExecutor(1) as executor:
        asked = executor.submit(_answer, change, control)
        time.sleep(moment)
        stopped = run.stop(case, number, moment)
        answer = asked.result(60)
        if answer not in ("", "UNAVAILABLE"):
            stopped.left.append(f"the operator got {answer}")
    return stopped


def _answer(change: Change, control: ControlClient) -> str:
    try:
        change(control)
    except ClientError as error:
        return error.code
    return ""


@contextmanager
def changes() -> Iterator[dict[str, Change]]:
    """What an operator may ask for, by name."""
    with tempfile.TemporaryDirectory(prefix="stops-") as folder:
        row = Path(folder) / "row"
        checkpoint = Checkpoint.open(DEMO_CHECKPOINT)
        save_file({"router.weight": torch.zeros(checkpoint.config.d_model, dtype=checkpoint.dtype)}, row)
        yield {
            "scale": lambda control: control.scale(4, timeout=100),
            "replace": lambda control: control.replace_expert(1, 2, FILE),
            "add": lambda control: control.add_expert(1, FILE, str(row)),
            "remove": lambda control: control.remove_expert(1, 2),
        }


def stop_shared(shared: Cluster, actors: Actors, number: signal.Signals, moment: float) -> Stopped:
    stopped = stop_start("shared", (*SERVE, f"--ray-address={shared.address}"), number, moment, shared.env)
    stopped.left += actors.left()
    return stopped


def stop_taker(shared: Cluster, actors: Actors, number: signal.Signals, moment: float) -> Stopped:
    """Stops a coordinator while it takes over another's workers; the other ends by a signal or by itself."""
    arguments = (*SERVE, f"--ray-address={shared.address}")
    other = Run(*arguments, env=shared.env)
    try:
        other.wait_ready()
        stopped = stop_start("take-over", (*arguments, "--take-over"), number, moment, shared.env)
        other.process.send_signal(signal.SIGTERM)
        code = other.process.wait(4 * BAR)
        stopped.left += [] if code in (0, 1) else [f"the other's code {code}"]
        stopped.left += actors.left()
    finally:
        other.close()
    return stopped


def moments(step: float, until: float) -> list[float]:
    return [round(number * step, 3) for number in range(1, int(until / step) + 1)]


def _seconds_to_start(arguments: tuple[str, ...], env: dict[str, str]) -> float:
    started = time.monotonic()
    run = Run(*arguments, env=env)
    try:
        run.wait_ready()
        return time.monotonic() - started
    finally:
        run.stop("first", signal.SIGTERM, 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", type=float, default=0.05, help="seconds between two moments (0.05)")
    parser.add_argument("--signals", default="TERM,INT")
    parser.add_argument(
        "--cases", default="own,shared,demo,generate,scale,replace,add,remove,take-over", help="by comma"
    )
    parser.add_argument("--jobs", type=int, default=1, help="at once; on a shared cluster always one")
    args = parser.parse_args()
    numbers = [signal.Signals[f"SIG{name}"] for name in args.signals.split(",")]
    cases = args.cases.split(",")
    until = 1.2 * _seconds_to_start(SERVE, {})
    print(f"{'case':<14} {'sig':<4} {'at':>7} {'code':>5} {'seconds':>7}  left", flush=True)
    done: list[Stopped] = []
    with changes() as ways, _shared(cases) as (shared, actors):
        for case in cases:
            works = [
                _work(case, number, moment, ways, shared, actors)
                for moment in moments(args.step, 2.0 if case in ways else until)
                for number in numbers
            ]
            jobs = 1 if case in ("shared", "take-over") else args.jobs
            with ThreadPoolExecutor(jobs) as executor:
                for stopped in executor.map(lambda work: work(), works):
                    done.append(stopped)
                    print(stopped, flush=True)
    for case in cases:
        _sum_up(case, [stopped for stopped in done if stopped.case == case])
    return int(any(stopped.problems for stopped in done))


def _work(
    case: str,
    number: signal.Signals,
    moment: float,
    ways: dict[str, Change],
    shared: Cluster | None,
    actors: Actors | None,
) -> Callable[[], Stopped]:
    if case in ways:
        return lambda: stop_change(case, ways[case], number, moment)
    if shared is not None and actors is not None and case in ("shared", "take-over"):
        stop = stop_shared if case == "shared" else stop_taker
        return lambda: stop(shared, actors, number, moment)
    arguments = {"own": SERVE, "demo": DEMO, "generate": GENERATE}[case]
    return lambda: stop_start(case, arguments, number, moment, {})


@contextmanager
def _shared(cases: list[str]) -> Iterator[tuple[Cluster | None, Actors | None]]:
    if not {"shared", "take-over"} & set(cases):
        yield None, None
        return
    with tempfile.TemporaryDirectory(prefix="stops-") as folder, cluster(Path(folder) / "c") as shared:
        actors = Actors(shared)
        try:
            yield shared, actors
        finally:
            actors.close()


def _sum_up(case: str, done: list[Stopped]) -> None:
    codes = {code: sum(each.code == code for each in done) for code in sorted({each.code for each in done})}
    longest = max((each.seconds for each in done), default=0.0)
    odd = [
        f"{each.moment:.2f} {each.number.name}: {'; '.join(each.problems)}" for each in done if each.problems
    ]
    print(
        f"{case}: {len(done)} stops, codes {codes}, longest {longest:.1f} s, {len(odd)} with a problem", *odd
    )


if __name__ == "__main__":
    raise SystemExit(main())
