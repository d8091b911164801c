"""The peers' own environment, `.venv-peers`: `python -m benchmarks.peers.install`.

llama.cpp is compiled here, for this processor: a general build would leave out what makes it fast.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moe_model.machine import usable_cores

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
CONSTRAINTS = ROOT / "constraints.txt"
COMPILED = "llama-cpp-python"
BUILD_OPTIONS = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"
COMPILERS = ("c++", "g++", "clang++")
PART_DONE = re.compile(r"^\s*\[(\d+)/(\d+)\]")
UNREACHABLE = (
    "Failed to establish a new connection",
    "name resolution",
    "timed out",
    "(from versions: none)",
)


class InstallError(Exception):
    """The peers' environment could not be made; the message is one line."""


def peers_python() -> Path:
    """Its interpreter. Makes the environment when it is not there or its requirements have changed."""
    python = FOLDER / "bin" / "python"
    mark = FOLDER / ".installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()
    if not mark.is_file() or mark.read_text(encoding="ascii") != wanted:
        _install(python)
        mark.write_text(wanted, encoding="ascii")
    return python


def _install(python: Path) -> None:
    if not os.environ.get("CXX") and not any(map(shutil.which, COMPILERS)):
        raise InstallError(f"no C++ compiler ({', '.join(COMPILERS)}): llama.cpp has to be compiled")
    started = time.monotonic()
    print(f"making {FOLDER.name} for the peers; compiling llama.cpp takes minutes", flush=True)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    pip = [str(python), "-m", "pip", "install", "--verbose", "--disable-pip-version-check"]
    # A wheel in the cache may have been compiled on another processor.
    pip += ["--no-cache-dir"]
    pip += ["--no-binary", COMPILED, "-c", str(CONSTRAINTS), "-r", str(REQUIREMENTS)]
    log = FOLDER / "install.log"
    environment = {
        "CMAKE_ARGS": BUILD_OPTIONS,
        "CMAKE_BUILD_PARALLEL_LEVEL": str(usable_cores().number),
    }
    if _run(pip, {**os.environ, **environment}, log) != 0:
        raise InstallError(reason(log.read_text(encoding="utf-8", errors="replace").splitlines(), log))
    print(f"made {FOLDER.name} in {time.monotonic() - started:.0f} s", flush=True)


def _run(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    with (
        log.open("w", encoding="utf-8") as copy,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            copy.write(line)
            _show(line)
    return process.returncode


def _show(line: str) -> None:
    """A package as pip comes to it, and every tenth part of what is compiled."""
    if line.startswith(("Collecting ", "Building wheel", "Installing collected")):
        print(f"  {line.strip()[:100]}", flush=True)
    part = PART_DONE.match(line)
    if part is not None and int(part[1]) % 10 == 0:
        print(f"  compiled {part[1]} of {part[2]}", flush=True)


def reason(log_lines: Iterable[str], log: Path) -> str:
    """One line for a person: what a failed installation says, and where the rest is."""
    lines = list(log_lines)
    if any(mark in line for line in lines for mark in UNREACHABLE):
        return f"the package registry cannot be reached (see {log})"
    errors = [line.strip() for line in lines if line.strip().lower().startswith(("error:", "cmake error"))]
    return f"{errors[0] if errors else 'pip failed'} (see {log})"


def main() -> None:
    try:
        peers_python()
    except InstallError as error:
        sys.exit(f"peers: {error}")


if __name__ == "__main__":
    main()
