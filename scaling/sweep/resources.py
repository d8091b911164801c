"""What a server's processes have used of this machine, and what energy the machine has used."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from benchmarks import process_tree

POWERCAP = Path("/sys/class/powercap")
Pids = Mapping[str, Sequence[int]]


class Look(Struct, frozen=True):
    """`cpu_s`: of each process, since it began. `joules`: the counter of each of the machine's packages."""

    cpu_s: dict[int, float]
    joules: dict[str, float]


def look(pids: Pids, powercap: Path = POWERCAP) -> Look:
    seconds = {pid: process_tree.cpu_seconds([pid]) for each in pids.values() for pid in each}
    return Look(seconds, _energy(powercap, "energy_uj"))


def cpu_by_role(before: Look, after: Look, pids: Pids) -> dict[str, float]:
    """Processor seconds between two looks by role; `pids` are those of the second look. A process that has
    ended between them counts for nothing."""
    return {
        role: sum(after.cpu_s.get(pid, 0.0) - before.cpu_s.get(pid, 0.0) for pid in each)
        for role, each in pids.items()
    }


def memory_by_role(pids: Pids) -> dict[str, float]:
    """Megabytes now; what processes share is divided among them."""
    return {role: process_tree.memory(each).pss / 1e6 for role, each in pids.items()}


def joules(before: Look, after: Look, powercap: Path = POWERCAP) -> float | None:
    """Of all packages together (RAPL); None where the machine does not say it. A counter that has begun
    anew counts on from its largest value.

    Source: https://docs.kernel.org/power/powercap/powercap.html.
    """
    if not before.joules or before.joules.keys() != after.joules.keys():
        return None
    ranges = _energy(powercap, "max_energy_range_uj")
    found = 0.0
    for name, value in after.joules.items():
        used = value - before.joules[name]
        found += used if used >= 0 else used + ranges.get(name, 0.0)
    return found


def _energy(powercap: Path, file: str) -> dict[str, float]:
    """Packages are `intel-rapl:N`; what is below one, `intel-rapl:N:M`, is a part of it."""
    found = {}
    for path in sorted(powercap.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            if path.name.count(":") == 1 and (path / "name").read_text().startswith("package"):
                found[path.name] = int((path / file).read_text()) / 1e6
    return found
