"""Where a benchmark ran: what its numbers depend on, and nothing that names a machine or a person."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from moe_model.machine import usable_cores

ROOT = Path(__file__).parents[1]
# What benchmarks write is no change of what they measure.
RESULTS = "benchmarks/results"
# Of x86 and of ARM.
FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "sve", "i8mm", "bf16"),
)
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_")
PACKAGES = ("expertmesh", "torch", "ray", "grpcio")


def manifest(module: str, arguments: Sequence[str]) -> dict[str, object]:
    """As it is now: to be asked before the work begins."""
    return {
        **commit(ROOT),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(("python -m", module, *map(shown, arguments))),
        **processor(_read("/proc/cpuinfo")),
        "cores": usable_cores().number,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "settings": settings(os.environ),
        "load_average": os.getloadavg(),
    }


def processor_line(found: Mapping[str, object]) -> str:
    """Of a manifest, for people."""
    flags = found["cpu_flags"]
    assert isinstance(flags, list)
    return f"{found['cpu']} ({' '.join(flags) or 'no extensions'}), {found['cores']} cores"


def threads() -> dict[str, int]:
    """Torch's, in this process; to be asked when they are set."""
    return {"torch": torch.get_num_threads(), "interop": torch.get_num_interop_threads()}


def shown(argument: str) -> str:
    """An argument without the folders of this machine: a path below the working folder, or its last name."""
    option, equals, value = argument.rpartition("=")
    if not value.startswith(("/", "~", "..")):
        return argument
    path = Path(value).expanduser().resolve()
    if path == Path.home():
        return f"{option}{equals}~"
    inside = path.is_relative_to(Path.cwd())
    return f"{option}{equals}{path.relative_to(Path.cwd()) if inside else path.name}"


def commit(folder: Path) -> dict[str, object]:
    """The commit of a working tree and whether anything differs from it; None where there is none."""
    found = _git(folder, "rev-parse", "--show-prefix", "HEAD")
    # A prefix: the folder lies in the tree of another project.
    if found is None or not found.startswith("\n"):
        return {"commit": None, "dirty": None}
    changes = _git(folder, "status", "--porcelain", "--", ".", f":!{RESULTS}")
    return {"commit": found.strip(), "dirty": changes != ""}


def processor(cpuinfo: str) -> dict[str, object]:
    """Its name and which of FLAGS it has, from the text of /proc/cpuinfo."""
    lines = [line.partition(":") for line in cpuinfo.splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    name = fields.get("model name") or platform.machine()
    return {"cpu": name, "cpu_flags": [flag for flag in FLAGS if flag in flags]}


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment tells the thread pools and the kernels."""
    return {name: shown(value) for name, value in sorted(environment.items()) if name.startswith(SETTINGS)}


def _git(folder: Path, *arguments: str) -> str | None:
    """None: no git, no repository, no commit."""
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
