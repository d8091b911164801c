"""Runs a command that ends, with all that it has started, when the process ends that has started this one.

    python -P -m scaling.sweep.guard COMMAND ...

It is told to end the command when its standard input is closed, which happens also where its parent is
killed. Processes below the command that lose their parents become this one's, so that none is missed.
"""

import ctypes
import os
import selectors
import signal
import subprocess
import sys

from expert_workers.processes import descendants, kill_and_wait

# Seconds for the command to end by itself, and for its processes to be gone when they were killed.
GRACE, KILLED = 40.0, 10.0
# Of prctl(2).
_PR_SET_CHILD_SUBREAPER = 36


def guarded(command: list[str]) -> list[str]:
    """The command line of a guard of the command."""
    return [sys.executable, "-P", "-m", "scaling.sweep.guard", *command]


def end(guard: "subprocess.Popen[bytes]") -> None:
    """Of a process that was started with a pipe for its input: it and all below it are gone then."""
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        guard.wait(GRACE + 2 * KILLED)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()


def main() -> int:
    """The command's exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Only the parent's end counts; a terminal's Ctrl-C is the parent's to hear.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=_heard_again)
    # Who reads what the command prints must see its end.
    os.close(1)
    code = _watch(process)
    kill_and_wait(descendants(os.getpid()), KILLED)
    return code if code >= 0 else 128 - code


def _heard_again() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _watch(process: "subprocess.Popen[bytes]") -> int:
    descriptor = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(descriptor, selectors.EVENT_READ)
            selector.select()
    finally:
        os.close(descriptor)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(KILLED)


if __name__ == "__main__":
    raise SystemExit(main())
