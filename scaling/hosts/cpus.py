"""Which of this machine's processors each host may use: a host of at most one core has one of them.

The kernel hands a quota out in slices to the processors that a group runs on, and what one of them does not
use is missing at the others until the next period (Linux, Documentation/scheduler/sched-bwc.rst). A host with
half a core whose worker moved between two processors got 0.37 of a core, and 0.5 on one.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

Cpus = frozenset[int]
# A thread that is started meanwhile has what its parent has: after few passes there is none left.
_MOST_PASSES = 10


def shared_out(cores: Sequence[float | None], cpus: Iterable[int]) -> list[Cpus]:
    """Of hosts with these quotas, the largest first, each to the processor with the least on it; hosts with
    more than one core or without a quota may use all."""
    whole = frozenset(cpus)
    found, taken = [whole] * len(cores), dict.fromkeys(sorted(whole), 0.0)
    quotas = {place: quota for place, quota in enumerate(cores) if quota is not None and quota <= 1}
    for place in sorted(quotas, key=lambda place: -quotas[place]):
        cpu = min(taken, key=lambda cpu: taken[cpu])
        taken[cpu] += quotas[place]
        found[place] = frozenset({cpu})
    return found


def pin(pids: Callable[[], Iterable[int]], cpus: Cpus) -> None:
    """All threads of a host's processes, and so what they start later."""
    for _ in range(_MOST_PASSES):
        if not _moved(pids(), cpus):
            return


def _moved(pids: Iterable[int], cpus: Cpus) -> bool:
    """Whether a thread was elsewhere."""
    moved = False
    for thread in (int(task.name) for pid in pids for task in _tasks(pid)):
        with suppress(ProcessLookupError):
            if os.sched_getaffinity(thread) != cpus:
                os.sched_setaffinity(thread, cpus)
                moved = True
    return moved


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
