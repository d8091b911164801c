"""What hosts leave on a machine, and how it goes: processes in namespaces, devices, folders, control groups.

The names of all of it begin with `emx` and the pid of the process that made it.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from scaling.hosts import groups

RUN_NETNS = Path("/run/netns")
END_TIMEOUT = 10.0
_NAMES = re.compile(r"\bemx([0-9]+)-[\w-]+")
_TIMEOUT = 30.0


def run(*command: str, stdin: str | None = None) -> str:
    """Runs a command to its end; its output. Raises RuntimeError with what it said when it fails."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(command)}: it had not ended after {_TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def sweep() -> list[str]:
    """Takes away what killed runs have left: namespaces and control groups with what runs in them,
    devices, folders.

    Returns their names. Runs whose process is there are let alone; on a host that is one of them nothing is
    touched, for there another run's process may not be seen.
    """
    if _is_within_a_host():
        return []
    devices, folders = Path("/sys/class/net"), short_temp_dir()
    places = (RUN_NETNS, *groups.roots(), devices, folders)
    left = [path for place in places for path in sorted(place.glob("emx*-*"))]
    left = [path for path in left if _is_left_over(path.name)]
    for path in left:
        # Another run may be sweeping too, and devices go with their namespace.
        with suppress(RuntimeError, OSError):
            if path.parent == RUN_NETNS:
                kill_all_in(path)
                run("ip", "netns", "del", path.name)
            elif path.parent == devices:
                run("ip", "link", "del", path.name)
            elif path.parent == folders:
                shutil.rmtree(path)
            else:
                groups.remove(path)
    return [path.name for path in left]


def short_temp_dir() -> Path:
    """Where folders for sockets can be made, whose paths may have 107 bytes."""
    parent = Path(tempfile.gettempdir())
    return parent if len(str(parent)) < 30 else Path("/tmp")


def pids_in(namespace: Path) -> set[int]:
    wanted = namespace.stat()
    found = set()
    for name in os.listdir("/proc"):
        # It may end while we look, and a zombie is in no namespace.
        with suppress(OSError):
            if name.isdigit():
                its = os.stat(f"/proc/{name}/ns/net")
                if (its.st_dev, its.st_ino) == (wanted.st_dev, wanted.st_ino):
                    found.add(int(name))
    return found


def kill_all_in(namespace: Path) -> None:
    """SIGKILL, and again for what was born meanwhile, until nothing runs in there."""
    deadline = time.monotonic() + END_TIMEOUT
    while pids := pids_in(namespace):
        if time.monotonic() > deadline:
            raise RuntimeError(f"still running in {namespace.name} after SIGKILL: {sorted(pids)}")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _is_within_a_host() -> bool:
    own = os.stat("/proc/self/ns/net")
    for path in RUN_NETNS.glob("emx*-*"):
        # Another run may be taking it away.
        with suppress(OSError):
            its = path.stat()
            if (its.st_dev, its.st_ino) == (own.st_dev, own.st_ino):
                return True
    return False


def _is_left_over(name: str) -> bool:
    found = _NAMES.fullmatch(name)
    return found is not None and not Path(f"/proc/{found[1]}").exists()


if __name__ == "__main__":
    for _name in sweep():
        print(_name)
