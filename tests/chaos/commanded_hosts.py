"""Hosts that are brought up by the documented commands and by nothing else: head, join, serve.

Each host has a home of its own, sees nothing of the model but what it has fetched, and has so much memory.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from expertmesh import Connection
from scaling.hosts.namespaces import Host
from scaling.hosts.ray_hosts import wait_until
from tests.integration.processes import COMMAND

_MEMORY = Path("/sys/fs/cgroup/memory")
# In a mount namespace of its own, with an empty folder over the first argument, in the group of the second.
_CONFINED = """
mount -t tmpfs none "$0" && echo $$ > "$1/cgroup.procs" && shift && exec "$@"
"""


@dataclass
class CommandedHost:
    """One command of expertmesh on a host, and what it says."""

    host: Host
    folder: Path
    hidden: Path | None = None
    memory_bytes: int | None = None
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    groups: list[Path] = field(default_factory=list)
    # What runs there anyway, as a relay does.
    others: set[int] = field(default_factory=set)

    @property
    def home(self) -> Path:
        return self.folder / self.host.name

    @property
    def log(self) -> str:
        return (self.home / "log").read_text(encoding="utf-8", errors="replace")

    def begin(self, *arguments: str) -> "CommandedHost":
        self.home.mkdir(exist_ok=True)
        self.others = self.host.pids()
        command = [*COMMAND, *arguments]
        if self.hidden is not None:
            confined = ["unshare", "--mount", "sh", "-c", _CONFINED, str(self.hidden), str(self._group())]
            command = [*confined, *command]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "EXPERTMESH_"))}
        env = {k: v for k, v in kept.items() if "proxy" not in k.lower()} | {"HOME": str(self.home)}
        with (self.home / "log").open("ab") as log, (self.home / "out").open("ab") as out:
            self.started = time.monotonic()
            self.process = self.host.popen(*command, stdout=out, stderr=log, env=env)
        return self

    def ready(self, timeout: float = 120.0) -> dict[str, str]:
        """What its READY line says."""

        def is_settled() -> bool:
            return self._ready_line() is not None or self.ended is not None

        wait_until(is_settled, timeout, f"{self.host.name} is not ready:\n{self.log[-2000:]}")
        line = self._ready_line()
        assert line is not None, f"{self.host.name} has ended:\n{self.log[-3000:]}"
        return dict(part.split("=", 1) for part in line.split()[1:])

    @property
    def ended(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def stop(self, number: int, timeout: float = 90.0) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def forget(self) -> None:
        """Its disk is empty again."""
        subprocess.run(["rm", "-rf", str(self.home)], check=True)

    def num_cached(self) -> int:
        """Bytes of experts that it has on its disk."""
        found = self.home.glob(".cache/expertmesh/*/files/**/*.safetensors")
        return sum(path.stat().st_blocks * 512 for path in found)

    def close(self) -> None:
        for group in self.groups:
            with suppress(OSError):
                group.rmdir()

    def _ready_line(self) -> str | None:
        found = re.findall(r"^READY .*$", (self.home / "out").read_text(), re.MULTILINE)
        return found[-1] if found else None

    def _group(self) -> Path:
        group = _MEMORY / f"{self.host.name}-{len(self.groups)}"
        group.mkdir()
        if self.memory_bytes is not None:
            (group / "memory.limit_in_bytes").write_text(str(self.memory_bytes))
        self.groups.append(group)
        return group


def has_memory_groups() -> bool:
    return (_MEMORY / "memory.limit_in_bytes").exists() or (_MEMORY / "cgroup.procs").exists()


@dataclass(frozen=True)
class Secrets:
    """A certificate for the address of a server, and a key for its callers, made as the pages say."""

    folder: Path
    key: str
    options: Sequence[str]

    @property
    def connection(self) -> Connection:
        return Connection(ca=self.folder / "ca.pem", api_key=self.key)


def make_secrets(folder: Path, address: str) -> Secrets:
    folder.mkdir(mode=0o700)
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    authority = ("req", "-x509", *curve, "-days", "2", "-subj", "/CN=a CA", *_files("ca.key", "ca.pem"))
    _run(folder, "openssl", *authority)
    names = f"subjectAltName=IP:{address}"
    request = ("req", *curve, "-subj", "/CN=server", "-addext", names, *_files("server.key", "server.csr"))
    _run(folder, "openssl", *request)
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2", "-copy_extensions", "copy")
    _run(folder, "openssl", "x509", "-req", "-in", "server.csr", *signing, "-out", "server.pem")
    said = _run(folder, sys.executable, "-m", "expertmesh.cli", "keys", "new", "ops", "--admin")
    key, line = (text.split()[-1] for text in said.splitlines() if ":" in text)
    (folder / "keys").write_text(f"{line}\n")
    for path in folder.iterdir():
        path.chmod(0o600)
    tls = (f"--tls-cert={folder / 'server.pem'}", f"--tls-key={folder / 'server.key'}")
    return Secrets(folder, key, (*tls, f"--api-key-file={folder / 'keys'}"))


def _files(key: str, out: str) -> tuple[str, ...]:
    return "-keyout", key, "-out", out


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def write_figures(name: str, figures: dict[str, object]) -> None:
    """For people who read the test's output."""
    sys.stdout.write(f"{name}: {json.dumps(figures)}\n")
