"""What of this machine would go wrong in a cluster, and what to do; one row for each thing. Light."""

import os
import resource
import shutil
import socket
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from expert_workers.machines.ports import NodePorts
from expert_workers.machines.reach import taken
from expert_workers.machines.versions import Versions
from moe_model import machine

_ROOT = Path(__file__).parents[2]
_NATIVE = (
    "moe_model/kernels/native",
    "expert_workers/dispatch/native",
    "expert_workers/transports/stream/native",
)
_GIB, _MIB = 1 << 30, 1 << 20
# Below that there is no room for Ray, Python and torch.
_LEAST_MEMORY, _LITTLE_MEMORY = 1 * _GIB, 4 * _GIB
_LITTLE_DISK = 10 * _GIB
# It is looked at, and nothing is put there.
_SHARED = Path("/dev/shm")  # noqa: S108
# What a node wants of it, see ray_start.py.
_LEAST_SHM = 256 * _MIB
_LEAST_FILES, _FEW_FILES = 1024, 4096
# A socket's path in TMPDIR: see own_folder.py.
_LONGEST_TEMP = 29


class Level(StrEnum):
    """How bad it is. An error would keep the machine from working; a warning makes it work worse."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Row:
    """`said` is what was found, `todo` what to do where that is not well."""

    name: str
    level: Level
    said: str
    todo: str = ""

    def line(self) -> str:
        return f"{self.level:<7} {self.name}: {self.said}" + (f"; {self.todo}" if self.todo else "")


def machine_rows(cache: Path) -> list[Row]:
    """All that can be said without a network. `cache` is where files of models will be."""
    return [
        versions(),
        kernels(),
        cores(),
        memory(machine.memory_bytes(), machine.available_bytes()),
        disk(cache),
        shared_memory(_SHARED),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)),
        temporary_folder(tempfile.gettempdir()),
        host_name(socket.gethostname()),
    ]


def versions() -> Row:
    here = Versions.here()
    said = f"expertmesh {here.expertmesh}, Ray {here.ray}, Python {here.python}"
    if "(" in here.ray + here.expertmesh:
        return Row("versions", Level.ERROR, said, "pip install expertmesh")
    return Row("versions", Level.OK, said)


def kernels(root: Path = _ROOT) -> Row:
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    missing = [name for name in _NATIVE if not list((root / name).glob(f"*{suffix}"))]
    if not missing:
        return Row("kernels", Level.OK, "built")
    return Row(
        "kernels",
        Level.WARNING,
        f"not built: {', '.join(missing)}; experts are computed several times slower",
        "install a C compiler, then expertmesh again",
    )


def cores() -> Row:
    found = machine.usable_cores()
    if found.is_quota:
        return Row(
            "cores", Level.WARNING, f"{found.number}: {found.why}", "a whole number of cores is quicker"
        )
    return Row("cores", Level.OK, f"{found.number}")


def memory(total: int, available: int) -> Row:
    said = f"{_gib(available)} free of {_gib(total)}"
    if available < _LEAST_MEMORY:
        return Row("memory", Level.ERROR, said, f"a node needs {_gib(_LEAST_MEMORY)}; end what uses it")
    if available < _LITTLE_MEMORY:
        return Row("memory", Level.WARNING, said, "few experts have room; end what else uses it")
    return Row("memory", Level.OK, said)


def disk(cache: Path) -> Row:
    """Of the file system that the cache is, or will be, on."""
    there = next(path for path in (cache, *cache.parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Row("disk", Level.ERROR, f"{there} cannot be written to", "say another folder (--cache)")
    free = shutil.disk_usage(there).free
    said = f"{_gib(free)} free at {cache}"
    if free < _LITTLE_DISK:
        return Row("disk", Level.WARNING, said, "a model's experts must fit there; say another (--cache)")
    return Row("disk", Level.OK, said)


def shared_memory(place: Path) -> Row:
    """Where Ray keeps what processes of one machine share."""
    name = str(place)
    try:
        size = shutil.disk_usage(place).total
    except OSError as error:
        return Row(name, Level.WARNING, f"{error.strerror}", "Ray uses the disk instead, which is slower")
    if size < _LEAST_SHM:
        todo = "Ray uses the disk instead; in a container: --shm-size=1g, or an emptyDir of medium Memory"
        return Row(name, Level.WARNING, f"{size / _MIB:.0f} MiB", todo)
    return Row(name, Level.OK, _gib(size))


def open_files(limits: tuple[int, int]) -> Row:
    soft, hard = (limit if limit != resource.RLIM_INFINITY else 1 << 30 for limit in limits)
    said = f"{soft} (at most {hard})"
    if hard < _LEAST_FILES:
        return Row("open files", Level.ERROR, said, "raise it: ulimit -Hn 65536, LimitNOFILE= of systemd")
    if hard < _FEW_FILES:
        return Row("open files", Level.WARNING, said, "raise it: ulimit -Hn 65536, LimitNOFILE= of systemd")
    return Row("open files", Level.OK, said)


def temporary_folder(path: str) -> Row:
    length = len(os.fsencode(os.path.realpath(path)))
    if length > _LONGEST_TEMP:
        return Row(
            "TMPDIR",
            Level.WARNING,
            f"{path} is too long for sockets, so /tmp is used",
            f"set TMPDIR to a path of at most {_LONGEST_TEMP} bytes",
        )
    if not os.access(path, os.W_OK):
        return Row(
            "TMPDIR", Level.ERROR, f"{path} cannot be written to", "set TMPDIR to a folder that can be"
        )
    return Row("TMPDIR", Level.OK, path)


def host_name(name: str) -> Row:
    try:
        found = socket.gethostbyname(name)
    except OSError:
        return Row("host name", Level.WARNING, f"{name} has no address", "add it to /etc/hosts")
    return Row("host name", Level.OK, f"{name} is {found}")


def free_ports(ports: Iterable[int], names: NodePorts) -> Row:
    """Of a machine that is about to become a node."""
    found = taken(ports)
    if not found:
        ranges = ", ".join(map(str, names.ranges))
        return Row("ports", Level.OK, f"{ranges} are free")
    said = ", ".join(f"{port} ({names.name_of(port)}): {why}" for port, why in sorted(found.items())[:4])
    return Row(
        "ports",
        Level.ERROR,
        said,
        "end what listens there (ss -ltnp), or say others (--node-port, --worker-ports, --data-ports)",
    )


def reachable(name: str, where: str, failed: dict[int, str], names: NodePorts) -> Row:
    """`failed`: why ports at `where` cannot be connected to."""
    if not failed:
        return Row(name, Level.OK, f"{where} can be reached")
    said = ", ".join(
        f"{where}:{port} ({names.name_of(port)}): {why}" for port, why in sorted(failed.items())[:4]
    )
    hint = (
        "a firewall is between"
        if "timed out" in failed.values()
        else "nothing listens, or a firewall is between"
    )
    return Row(name, Level.ERROR, f"cannot reach {said}", f"{hint}: open {', '.join(map(str, names.ranges))}")


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
