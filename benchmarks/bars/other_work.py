"""How much of the machine others use, looked at while we do nothing ourselves."""

import os
import time
from pathlib import Path

LOOK_SECONDS = 1.0


def cores_in_use(seconds: float = LOOK_SECONDS) -> float:
    """Of the whole machine, in the mean over so many seconds from now. The load average would still have what
    we did ourselves a minute ago."""
    busy, started = _busy_seconds(), time.perf_counter()
    time.sleep(seconds)
    return (_busy_seconds() - busy) / (time.perf_counter() - started)


def _busy_seconds(stat: Path = Path("/proc/stat")) -> float:
    """What all cores together have computed: of the first line all but idle and waiting for disks."""
    fields = stat.read_text(encoding="ascii").split("\n", 1)[0].split()
    user, nice, system, _idle, _waiting, *others = map(int, fields[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")
