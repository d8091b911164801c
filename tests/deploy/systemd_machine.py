"""Machines that systemd has booted, for units: containers of systemd-nspawn on the hosts of a Network.

Their root is Debian's packages, unpacked once by mmdebstrap; what a machine writes is gone with it. Python,
the installed packages and the tree lie below /opt, as an installation of a user's would.
"""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import TracebackType
from typing import Self

from scaling.hosts.namespaces import Host, missing_capability
from scaling.hosts.ray_hosts import wait_until
from tests.deploy.tools import DEPLOY, ROOT

PROGRAM = "/opt/expertmesh/bin/expertmesh"
BOOT_TIMEOUT, STOP_TIMEOUT = 60.0, 30.0
_PACKAGES = "systemd,systemd-sysv,dbus,iproute2,procps,openssl"
_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_COMMAND = """\
#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/source:/opt/source/client:/opt/packages
exec /opt/python/bin/python3 -m expertmesh.cli "$@"
"""


def missing() -> str:
    """What this machine lacks, in one line; empty where machines can be booted."""
    absent = [name for name in ("mmdebstrap", "systemd-nspawn", "nsenter") if shutil.which(name) is None]
    return missing_capability() or (f"not installed: {', '.join(absent)}" if absent else "")


def make_root(folder: Path) -> None:
    """Unpacks Debian's packages, and installs the units as deploy/systemd/README.md says."""
    command = ["mmdebstrap", "--variant=minbase", f"--include={_PACKAGES}", "--format=directory"]
    done = subprocess.run(
        [*command, "bookworm", str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    program = folder / PROGRAM.removeprefix("/")
    program.parent.mkdir(parents=True)
    program.write_text(_COMMAND)
    program.chmod(0o755)
    for unit in (DEPLOY / "systemd").glob("*.service"):
        shutil.copy(unit, folder / "etc" / "systemd" / "system")
    shutil.copy(
        DEPLOY / "systemd" / "expertmesh.sysusers.conf",
        folder / "usr" / "lib" / "sysusers.d" / "expertmesh.conf",
    )
    (folder / "etc" / "expertmesh").mkdir()


class Machine:
    """A context manager: booted when its block begins, off and gone after it."""

    def __init__(self, host: Host, root: Path, log: Path) -> None:
        self.host = host
        self._log = log
        packages = sysconfig.get_path("purelib")
        binds = {sys.base_prefix: "/opt/python", packages: "/opt/packages", str(ROOT): "/opt/source"}
        self._command = [
            *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--link-journal=no"),
            *("--console=pipe", "--volatile=overlay", f"--directory={root}", f"--machine={host.name}"),
            f"--network-namespace-path=/run/netns/{host.name}",
            *(f"--bind-ro={source}:{target}" for source, target in binds.items()),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_until(self._is_booted, BOOT_TIMEOUT, f"{self.host.name} has not booted")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        leader = self._leader()
        if leader is not None:
            # systemd's own signal for a container's end.
            os.kill(leader, signal.SIGRTMIN + 4)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, *command: str, text: str | None = None) -> str:
        """As root in the machine. AssertionError with what it said where it fails."""
        done = self._ran(*command, text=text)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def write(self, path: str, text: str, mode: str = "644", owner: str = "root:root") -> None:
        self.run("sh", "-c", f"cat > {path} && chmod {mode} {path} && chown {owner} {path}", text=text)

    def state(self, unit: str) -> dict[str, str]:
        """What `systemctl show` says."""
        lines = self.run("systemctl", "show", unit).splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def wait_said(self, unit: str, words: str, timeout: float = 120.0) -> None:
        """Until a unit's journal has these words; fails with the journal."""
        try:
            wait_until(lambda: words in self.journal(unit), timeout, f"{unit}: no {words!r}")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.journal(unit)[-4000:]}") from None

    def processes_of(self, unit: str) -> list[str]:
        """The pids, in there, of all that runs in a unit."""
        group = self.state(unit)["ControlGroup"]
        return self._ran("cat", f"/sys/fs/cgroup/systemd{group}/cgroup.procs").stdout.split() if group else []

    def processes_of_user(self, user: str) -> list[str]:
        return self._ran("pgrep", "--list-full", "--uid", user).stdout.splitlines()

    def user_of(self, unit: str) -> str:
        """Whose its main process is."""
        return self.run("ps", "--no-headers", "-o", "user:32", "-p", self.state(unit)["MainPID"]).strip()

    def popen(self, *command: str) -> subprocess.Popen[bytes]:
        """As `run`, while it runs. Its output is not buffered here: a part of it can be read first."""
        return subprocess.Popen(
            self._inside(*command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=_ENV
        )

    def _ran(self, *command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside(*command),
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=_ENV,
        )

    def _inside(self, *command: str) -> list[str]:
        leader = self._leader()
        assert leader is not None, self._log.read_text(errors="replace")
        return ["nsenter", f"--target={leader}", "--all", "--", *command]

    def _leader(self) -> int | None:
        """The pid, out here, of systemd in there."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = children.read_text().split() if children.exists() else []
        return int(found[0]) if found else None

    def _is_booted(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text(errors="replace")
        if self._leader() is None:
            return False
        state = self._ran("systemctl", "is-system-running").stdout.strip()
        return state in ("running", "degraded")
