"""Which process of a server does what, by what it runs."""

from collections.abc import Iterable, Mapping

from benchmarks.process_tree import Process
from benchmarks.server_process import ENGINE_MODULE, FRONT_MODULE
from chaos.processes import MARK

_GUARD = "scaling.sweep.guard"
_COMMANDS = ("expertmesh.cli", "coordinator.cli")


def roles(processes: Iterable[Process]) -> Mapping[str, list[int]]:
    """Pids by role: coordinator (the process that was started), engine, front, workers, and ray for all
    else; a role without a process is not there, and neither is a guard."""
    found: dict[str, list[int]] = {}
    for process in processes:
        if (role := _role(process)) is not None:
            found.setdefault(role, []).append(process.pid)
    return found


def _role(process: Process) -> str | None:
    if process.runs(_GUARD):
        return None
    if any(map(process.runs, _COMMANDS)):
        return "coordinator"
    if process.runs(ENGINE_MODULE):
        return "engine"
    if process.runs(FRONT_MODULE):
        return "front"
    return "workers" if any(MARK.decode() in word for word in process.command) else "ray"
