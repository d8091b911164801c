"""A Slurm of our own for a test: Debian's slurmctld, slurmd and munged over the hosts of a Network.

Each node has its own name, processes and /tmp, as machines do, so that what stays behind on one can be seen.
There is no systemd and no cgroup plugin: Slurm follows the processes of a job by their parents.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from scaling.hosts.namespaces import Host, Network, missing_capability
from scaling.hosts.ray_hosts import wait_until

ROOT = Path(__file__).parents[2]
# Jobs are an ordinary user's.
USER = 65534
_DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv", "unshare")
_START_TIMEOUT = 60.0
# Slurm's own ports: of its daemons, and what srun listens on.
_DAEMON_PORTS, _SRUN_PORTS = (6817, 6818), (60001, 60100)
# Runs the command behind it, on a machine of that name, whose /tmp and /root are empty but for what is named.
# Its shell is the first process there, which waits for those that have lost their parents.
_MACHINE = """
set -eu
hostname "$1"
shift
mount --bind / /mnt
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=755 tmp /root
while [ "$1" != -- ]; do
  mkdir -p "$1"
  mount --bind "/mnt$1" "$1"
  shift
done
umount /mnt
shift
"$@" &
wait "$!"
"""
_CONF = """\
ClusterName=test
SlurmctldHost=ctl({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=30
SrunPortRange={srun[0]}-{srun[1]}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What this machine lacks, in one line; empty where a cluster can be made."""
    absent = [command for command in _DAEMONS if shutil.which(command) is None]
    return missing_capability() or (f"not installed: {', '.join(absent)}" if absent else "")


class SlurmCluster:
    """A context manager. `nodes` are names of hosts, of at most six letters."""

    def __init__(self, *nodes: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="em-slurm-"))
        self.folder.chmod(0o755)
        # Where jobs are submitted: the user's own.
        self.home = self.folder / "home"
        self.home.mkdir(mode=0o700)
        os.chown(self.home, USER, USER)
        self._network = Network()
        self._controller = self._network.host("ctl")
        self.nodes = {name: self._network.host(name) for name in nodes}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._network.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def submit(self, *arguments: str, env: Mapping[str, str] | None = None) -> int:
        """`sbatch ARGUMENTS` as the user, in the environment that the tests run in; the job's number."""
        said = self.run("sbatch", "--parsable", *arguments, is_user=True, env=env)
        return int(said.partition(";")[0])

    def run(self, *command: str, is_user: bool = False, env: Mapping[str, str] | None = None) -> str:
        """A command of Slurm's, on the controller's host. Raises CalledProcessError."""
        as_user = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]
        prefix = ["setpriv", *as_user] if is_user else []
        done = subprocess.run(
            self._controller.command(*prefix, *command),
            capture_output=True,
            text=True,
            env={**self._environment(), **(env or {})},
            cwd=self.home,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

    def on_node(self, node: str, *command: str) -> subprocess.Popen[bytes]:
        """A command among a node's own addresses, loopback too, as its users can run; its output is read."""
        return self.nodes[node].popen(
            *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self._environment()
        )

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self.run("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def output(self, number: int) -> str:
        path = self.home / f"expertmesh-{number}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def wait_state(self, number: int, *states: str, timeout: float = 120.0) -> dict[str, str]:
        """Of a job, when it has one of these; the time limit of a job is looked at every 30 s."""
        try:
            wait_until(lambda: self.job(number)["JobState"] in states, timeout, f"job {number}: {states}")
        except TimeoutError as error:
            raise AssertionError(f"{error}:\n{self.output(number)[-3000:]}") from None
        return self.job(number)

    def processes(self, node: str) -> list[str]:
        """The command lines of all that runs on a node, but what the rig has started there."""
        lines = [_line(pid) for pid in sorted(self.nodes[node].pids())]
        return [
            line for line in lines if line and not line.startswith(("slurmd ", "unshare ", "sh -c \nset"))
        ]

    def open_ports(self, node: str) -> set[int]:
        """On which jobs of a node can be reached from elsewhere; none of Slurm's own."""
        lines = self.nodes[node].run("ss", "--no-header", "--listening", "--tcp", "--numeric").splitlines()
        places = [line.split()[3].rpartition(":") for line in lines]
        ports = {
            int(port) for host, _, port in places if not host.startswith(("127.", "[::1]", "[::ffff:127."))
        }
        return ports - {*_DAEMON_PORTS, *range(_SRUN_PORTS[0], _SRUN_PORTS[1] + 1)}

    def temporary(self, node: str) -> list[str]:
        """What lies in a node's /tmp, but what the rig has bound there."""
        pids = [pid for pid in self.nodes[node].pids() if Path(f"/proc/{pid}/comm").read_text() == "slurmd\n"]
        ours = {path.parts[2] for path in (self.folder, ROOT) if path.parts[1] == "tmp"}
        return sorted({path.name for path in self.root_of(pids[0]).joinpath("tmp").iterdir()} - ours)

    @staticmethod
    def root_of(pid: int) -> Path:
        """The root of a node's file system, as a process there sees it."""
        return Path("/proc", str(pid), "root")

    def logs(self) -> str:
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-2000:]}" for path in paths)

    def _environment(self) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RAY_", "SLURM_")) and "proxy" not in key.lower() and key != "TMPDIR"
        }
        path = f"{Path(sys.executable).parent}:{kept['PATH']}:/usr/sbin"
        return {**kept, "PATH": path, "HOME": str(self.home), "SLURM_CONF": str(self.folder / "slurm.conf")}

    def _start(self) -> None:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        conf = _CONF.format(controller=self._controller.address, folder=self.folder, srun=_SRUN_PORTS)
        for name, host in self.nodes.items():
            conf += f"NodeName={name} NodeAddr={host.address} CPUs=2 RealMemory=1000 State=UNKNOWN\n"
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        at = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed", "key")}
        munged = [f"--{name}-file={at[name]}" for name in ("pid", "log", "seed", "key")]
        self._launch(
            self._controller, "munged", "--foreground", "--force", f"--socket={at['socket']}", *munged
        )
        wait_until(at["socket"].exists, _START_TIMEOUT, "no munged")
        self._launch(self._controller, *_on_machine("ctl", self.folder), "slurmctld", "-D")
        for name, host in self.nodes.items():
            self._launch(host, *_on_machine(name, self.folder), "slurmd", "-D", log=name)
        try:
            wait_until(self._is_up, _START_TIMEOUT, "no Slurm")
        except TimeoutError as error:
            raise AssertionError(f"{error}:\n{self.logs()}") from None

    def _launch(self, host: Host, *command: str, log: str = "ctl") -> None:
        with (self.folder / f"{log}.log").open("ab") as file:
            host.popen(*command, stdout=file, stderr=subprocess.STDOUT, env=self._environment())

    def _is_up(self) -> bool:
        command = self._controller.command("sinfo", "--noheader", "--Node", "--format=%T")
        done = subprocess.run(
            command, capture_output=True, text=True, env=self._environment(), timeout=60, check=False
        )
        return done.stdout.split() == ["idle"] * len(self.nodes)


def _line(pid: int) -> str:
    """Empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _on_machine(name: str, folder: Path) -> Sequence[str]:
    """The start of a command line whose rest shall be the first process of a machine."""
    unshare = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
    return (*unshare, "sh", "-c", _MACHINE, "sh", name, str(folder), str(ROOT), sys.base_prefix, "--")
