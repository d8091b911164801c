"""Services of deploy/compose/compose.yaml where there is no container engine: each on a host of its own, a
network namespace, and as much in the way of a container as the kernel can without one.

What compose says of a service is done: its user, no capabilities, no new privileges, a read-only root, its
`tmpfs`, /dev/shm of its size, its environment and nothing else of ours, and its secrets, at their place and
with the owners that secrets.sh has given them. Not done: the image, for which this installation stands,
limits of memory and processors, and networks: here each host reaches each other.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from scaling.hosts.namespaces import Host, Network
from scaling.hosts.ray_hosts import wait_until
from tests.deploy.tools import DEPLOY, ROOT
from tests.integration.processes import DEMO_CHECKPOINT

COMPOSE = DEPLOY / "compose" / "compose.yaml"
PATIENCE = 150.0

# Mounts are private to the process and what it starts. What is covered and has to be seen again waits at
# places that every Linux has.
_BOX = """
set -e
mount --make-rprivate /
mount --bind "$ROOT" /mnt
mount --bind "$PYTHON" /media
mount -t tmpfs -o "size=$SHM,mode=1777" shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mkdir /run/secrets
for name in $SECRETS; do
  touch "/run/secrets/$name"
  mount --bind "$SECRETS_FOLDER/$name" "/run/secrets/$name"
done
mount -t tmpfs -o mode=755 home /root
mount -t tmpfs -o "$TMPFS" tmp /tmp
for pair in "/mnt $ROOT" "/media $PYTHON"; do
  mkdir -p "${pair#* }"
  mount --bind ${pair}
  mount -o remount,ro,bind "${pair#* }"
done
mount -o remount,ro,bind /
mount -o remount,ro /run
cd /
exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups --no-new-privs --bounding-set=-all \
  --inh-caps=-all env -i $ENVIRONMENT "$@"
"""


class ComposeHost:
    """A service on a host. `addresses` are those of the file by what they are here."""

    def __init__(self, name: str, host: Host, folder: Path, addresses: dict[str, str]) -> None:
        self.service = service(name)
        self.host = host
        self._folder = folder
        self._addresses = addresses
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Again, too; what it said before stays in the log."""
        with self._log.open("ab") as log:
            self._process = self.host.popen(
                *self.boxed(*self.service["entrypoint"]), stdout=log, stderr=subprocess.STDOUT
            )

    def stop(self, timeout: float) -> int:
        """As an engine stops a container: SIGTERM; all that is left ends with it. The exit code."""
        self.process.terminate()
        code = self.process.wait(timeout)
        self.host.kill_all()
        return code

    def wait_healthy(self) -> None:
        """What others depend on. A service that ends by itself is started again, as the file says."""
        assert self.service["restart"] == "unless-stopped"

        def is_healthy() -> bool:
            if self.process.poll() is not None:
                self.host.kill_all()
                self.start()
            kind, *command = self.service["healthcheck"]["test"]
            assert kind == "CMD"
            return self.run(*command).returncode == 0

        wait_until(is_healthy, PATIENCE, f"{self.host.name} is not healthy")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in the same box, as `docker compose exec` does it."""
        return subprocess.run(
            self.host.command(*self.boxed(*command)), capture_output=True, text=True, timeout=60, check=False
        )

    def boxed(self, *command: str) -> list[str]:
        """The command line that does it, as root, on the host."""
        user, _, group = self.service["user"].partition(":")
        assert user == group
        assert self.service["read_only"] is True
        assert self.service["cap_drop"] == ["ALL"]
        assert self.service["security_opt"] == ["no-new-privileges:true"]
        (tmpfs,) = self.service["tmpfs"]
        path, _, options = tmpfs.partition(":")
        assert path == "/tmp"
        environment = {**self.service["environment"], "PATH": f"{ROOT / '.venv' / 'bin'}:/usr/bin:/bin"}
        settings = {
            "ROOT": str(ROOT),
            "PYTHON": sys.base_prefix,
            "SHM": self.service["shm_size"].removesuffix("b"),
            "TMPFS": options,
            "SECRETS": " ".join(self.service["secrets"]),
            "SECRETS_FOLDER": str(self._folder),
            "USER_ID": user,
            "ENVIRONMENT": " ".join(f"{name}={self._here(value)}" for name, value in environment.items()),
        }
        return [
            *("env", *(f"{name}={value}" for name, value in settings.items())),
            *("unshare", "--mount", "sh", "-c", _BOX, "box", *map(self._here, command)),
        ]

    def _here(self, text: str) -> str:
        """With addresses and the folder of the model as they are in this test."""
        for there, here in self._addresses.items():
            text = re.sub(rf"{re.escape(there)}(?!\d)", here, text)
        return re.sub(r"(?<=\s)/model(?=\s)", shlex.quote(str(DEMO_CHECKPOINT)), text)

    @property
    def _log(self) -> Path:
        return self._folder / f"{self.host.name}.log"


def service(name: str) -> dict[str, Any]:
    """With variables as they are where nobody sets them."""
    text = COMPOSE.read_text(encoding="utf-8")
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
    found: dict[str, Any] = yaml.safe_load(text)["services"][name]
    return found


def compose_hosts(network: Network, secrets: Path) -> dict[str, ComposeHost]:
    """Ray's services, none of them started; each has a host of at most six letters."""
    names = {"head": "head", "coordinator": "coord", "worker-1": "w1", "worker-2": "w2"}
    hosts = {name: network.host(short) for name, short in names.items()}
    addresses = {service(name)["environment"]["NODE_ADDRESS"]: host.address for name, host in hosts.items()}
    return {name: ComposeHost(name, host, secrets, addresses) for name, host in hosts.items()}
