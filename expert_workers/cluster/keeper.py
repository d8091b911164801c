"""Keeps a Ray of our own until it is told to end it, or no launcher is left that could tell it so.

    python -P -m expert_workers.cluster.keeper CHANNEL FOLDER

Ray's processes are this one's children, and end with it whatever happens. Light: Ray's library has done its
work in this process before, see own_ray.py.
"""

import os
import shutil
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from expert_workers.processes import Process, children, descendants, kill_and_wait, wait_gone

# Seconds for processes to end by themselves, and to be gone when they were killed.
_GRACE, _KILLED = 1.0, 10.0
_RAYLET = "raylet"


def main() -> int:
    channel, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.set_inheritable(channel, False)
    with socket.socket(fileno=channel) as launcher:
        return end_when_told(launcher, folder)


def end_when_told(launcher: socket.socket, folder: Path) -> int:
    """Waits for a word of the launcher's, or its end, and ends all that this process has started. With the
    launcher's end the folder goes too. The exit code."""
    try:
        is_told = bool(launcher.recv(1, socket.MSG_PEEK))
    except ConnectionError:
        # It ended with something unread.
        is_told = False
    everything = descendants(os.getpid())
    # The raylet first: it ends the workers, and complains about whatever else ends before it.
    _end(children(os.getpid(), _RAYLET))
    _end(children(os.getpid()))
    left = kill_and_wait(everything | descendants(os.getpid()), _KILLED)
    if not is_told:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if left else 0


def _end(processes: frozenset[Process]) -> None:
    """Asks them to, and gives them time."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
    wait_gone(processes, _GRACE)


if __name__ == "__main__":
    raise SystemExit(main())
