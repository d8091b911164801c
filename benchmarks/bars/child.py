"""One benchmark in a process of its own, which ends with one JSON line."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.server_process import ROOT, environment_of

TIMEOUT = 1800.0
# For a benchmark that is interrupted to end its servers.
END_TIMEOUT = 90.0


class RowError(Exception):
    """Why there is no result, in one line."""


def run(
    command: Sequence[str], log: Path, say: Callable[[str], None], timeout: float = TIMEOUT
) -> dict[str, Any]:
    """`command` follows `python -m`; `say` gets each line that is for people. Raises RowError."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *command],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=environment_of(ROOT),
        )
    interrupts = threading.Timer(timeout, process.send_signal, [signal.SIGINT])
    interrupts.start()
    try:
        last = _last_of(process, say)
        code = process.wait(END_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise RowError("it has closed its output and does not end") from None
    finally:
        is_late = interrupts.finished.is_set()
        interrupts.cancel()
        _end(process)
    if is_late:
        raise RowError(f"no result within {timeout:g} s")
    if code != 0:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        raise RowError(f"it ended {how}: {_last_line(log) or last or 'it said nothing'}")
    return _result(last)


def _last_of(process: subprocess.Popen[str], say: Callable[[str], None]) -> str:
    """Its last line; all others have been said."""
    last = ""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if last:
                say(last)
            last = line.rstrip()
    return last


def _end(process: subprocess.Popen[str]) -> None:
    """Also where we are interrupted ourselves: it ends its servers, or is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT)
        process.kill()
        process.wait()


def _result(line: str) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    raise RowError(f"its last line is no result: {line[:80]!r}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
