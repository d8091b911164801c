"""What all load generators have in common: one subprocess, one deadline, one file that it leaves."""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from moe_model.errors import ConfigError
from scaling.cell import Load
from scaling.loads.base import LoadRun, Target, Timed
from scaling.loads.subprocesses import Deadline, ended
from scaling.loads.tools.begun import FirstRequest
from scaling.loads.tools.tokenizer_folder import tokenizer_folder

ROOT = Path(__file__).parents[3]
# What scripts/load_tools.py makes, a folder for each tool.
ENVIRONMENTS = ROOT / ".venv-loads"
# Between two looks at whether the first request has come, and whether the tool has ended.
LOOK_S = 0.05
# A tool measures what a server on this machine or near it does: no proxy, nothing sent home.
SETTINGS = {
    "NO_PROXY": "*",
    "no_proxy": "*",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
T = TypeVar("T")


class ToolSender:
    """One tool; see scaling.loads.base.Sender. What differs is in `command` and `read`."""

    name = ""

    def command(self, target: Target, load: Load, seed: int, folder: Path, tokenizer: Path) -> list[str]:
        """After the tool's own program."""
        raise NotImplementedError

    def read(self, folder: Path, load: Load) -> tuple[float, list[Timed]]:
        """What it left: when the load began, by time.monotonic(), and its requests, their seconds since then.
        Raises RuntimeError where that is not as this version of the tool writes it."""
        raise NotImplementedError

    def run(
        self,
        target: Target,
        load: Load,
        seed: int,
        folder: Path,
        on_begin: Callable[[], None],
        timeout: float,
    ) -> LoadRun:
        """Processor seconds are those of the whole process, its start included. Raises ConfigError for what
        the tool cannot send, or where it is not installed."""
        self.check(target, load)
        folder.mkdir(parents=True, exist_ok=True)
        # All paths of a command are whole: the tool runs in `folder`, where it may leave what it likes.
        folder = folder.resolve()
        tokenizer = tokenizer_folder(target, folder)
        command = [str(program(self.name)), *self.command(target, load, seed, folder, tokenizer)]
        used = _children_seconds()
        run_tool(self.name, command, folder, timeout, FirstRequest(target.http_address, on_begin))
        began_s, requests = self.read(folder, load)
        seconds = max((request.end_s for request in requests), default=0.0)
        return LoadRun(seconds, tuple(requests), _children_seconds() - used, began_s)

    def check(self, target: Target, load: Load) -> None:
        """Raises ConfigError for what no tool can send as it is asked."""
        if load.trace is not None or load.lengths != "exact":
            raise ConfigError(f"load: {self.name} sends requests of one length: take tool: own for others")
        if target.allowed_experts:
            raise ConfigError(f"load: {self.name} cannot restrict experts: take tool: own")
        if (load.concurrency is None) == (load.rate is None):
            raise ConfigError("load: say one of concurrency and rate")


def program(name: str) -> Path:
    """Of a tool. Raises ConfigError where scripts/load_tools.py has not installed it."""
    found = ENVIRONMENTS / name / "bin" / name
    if not found.is_file():
        raise ConfigError(f"load: {name} is not installed: python scripts/load_tools.py {name}")
    return found


def run_tool(
    name: str, command: list[str], folder: Path, timeout: float, first: "FirstRequest | None" = None
) -> None:
    """Until it has ended, with all that it has started. Raises RuntimeError with what it said last."""
    deadline, log = Deadline(timeout), folder / f"{name}.log"
    environment = {**os.environ, **SETTINGS, "HOME": str(folder)}
    environment.pop("PYTHONPATH", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        with ended(process):
            while process.poll() is None and first is not None and not first.has_come():
                time.sleep(min(LOOK_S, deadline.left))
                if not deadline.left:
                    break
            deadline.wait(process)
    if process.returncode != 0:
        raise RuntimeError(f"{name} failed, exit code {process.returncode}: {_last_line(log)} ({log})")


def wall_to_monotonic() -> float:
    """To be added to times of time.time(), which most tools note."""
    return time.monotonic() - time.time()


def decoded(path: Path, kind: type[T], tool: str) -> T:
    """Of JSON; keys that are not asked for may be there. Raises RuntimeError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise RuntimeError(f"{tool} left no {path.name}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise RuntimeError(f"{tool} wrote {path.name} as this does not know it: {error}") from error


def body_options(options: Mapping[str, Any]) -> str:
    """JSON in a line, for tools that put it into every request."""
    return msgspec.json.encode(options).decode()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    said = [line for line in lines if any(letter.isalnum() for letter in line)]
    named = [line for line in said if "error" in line.lower()]
    return (named or said or ["it does not say why"])[-1][:300]


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
