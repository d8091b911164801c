"""Pods that run, without containers: namespaces for network and folders of each, and its own commands.

What a kubelet does is done here in its order: sidecars before the others, probes, hooks, SIGTERM. The root of
a pod is this machine's, read-only; where its secrets and volumes would be is said by `places`.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling.hosts.namespaces import Host
from tests.deploy.pods import Object, containers
from tests.deploy.tools import ROOT

# A folder of each pod's own in place of /tmp and /dev/shm; what is kept of /tmp; names; all else read-only.
_FOLDERS = """
set -e
own=$(mktemp -d); hosts=$1; shift
mount -t tmpfs -o mode=1777 tmpfs "$own"
for kept in "$@"; do
  place=$own/${kept#/tmp/}
  case $kept in /tmp/*) mkdir -p "$place" ;; *) place=$kept ;; esac
  mount --bind "$kept" "$place"
done
mount --move "$own" /tmp
mount -t tmpfs -o size=512m tmpfs /dev/shm
mount --bind "$hosts" /etc/hosts
mount -o remount,bind,ro /
echo there
exec sleep infinity
"""
_BIN = Path(sys.executable).parent


class Pod:
    """One pod of a template, on a host of a Network."""

    def __init__(
        self, host: Host, template: Object, folder: Path, places: Mapping[str, str], names: Mapping[str, str]
    ) -> None:
        """`places` has the paths of volumes, by the paths in containers; `names` has addresses, by name."""
        self.host = host
        self.template = template
        self.folder = folder
        self._places, self._names = places, names
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        hosts = folder / "hosts"
        hosts.write_text("".join(f"{address} {name}\n" for name, address in names.items()))
        kept = [str(ROOT), str(folder), *{path for path in places.values() if path.startswith("/tmp/")}]
        with (folder / "folders.log").open("wb") as log:
            self._holder = host.popen(
                *(
                    "unshare",
                    "--mount",
                    "--propagation",
                    "private",
                    "bash",
                    "-c",
                    _FOLDERS,
                    "bash",
                    str(hosts),
                ),
                *kept,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"there\n", (folder / "folders.log").read_text()

    def start(self, name: str, command: Sequence[str] | None = None, **more: str) -> subprocess.Popen[bytes]:
        """Runs a container by its own command, or one that an operator has put into its place."""
        container = self.container(name)
        own = [*container.get("command", []), *container.get("args", [])]
        self.running[name] = self._popen(name, command or own, {**self._environment(container), **more})
        return self.running[name]

    def stop(self, name: str, **more: str) -> int:
        """Its hook, then SIGTERM; its exit code, or that of SIGKILL after the pod's grace."""
        container = self.container(name)
        grace = float(self.template["spec"]["terminationGracePeriodSeconds"])
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if hook:
            ran = self._popen(f"{name}-hook", hook, {**self._environment(container), **more})
            assert ran.wait(grace) == 0, self.log(f"{name}-hook")
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(grace)

    def again(self) -> "Pod":
        """Another one in its place, with folders of its own."""
        folder = self.folder.with_name(f"{self.folder.name}+")
        folder.mkdir()
        return Pod(self.host, self.template, folder, self._places, self._names)

    def container(self, name: str) -> Any:
        return next(each for each in containers(self.template) if each["name"] == name)

    def sees(self, path: Path) -> bool:
        """Whether its containers find something there, at this machine's path."""
        found = self.host.popen("nsenter", f"--target={self._holder.pid}", "--mount", "test", "-e", str(path))
        return found.wait() == 0

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def ports(self) -> set[int]:
        """At which others can reach it."""
        lines = self.host.run("ss", "-Hltn").splitlines()
        found = [line.split()[3].rpartition(":") for line in lines]
        return {
            int(port) for where, _, port in found if not where.startswith(("127.", "[::1]", "[::ffff:127."))
        }

    def _popen(
        self, log: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        variables = {**environment, "PATH": f"{_BIN}:{os.environ['PATH']}"}
        known = {name: self._placed(value) for name, value in variables.items()}
        filled = [self._placed(_filled(word, known)) for word in command]
        with (self.folder / f"{log}.log").open("ab") as file:
            return self.host.popen(
                *("nsenter", f"--target={self._holder.pid}", "--mount", "--wd=/", "--", *filled),
                stdout=file,
                stderr=file,
                env=known,
            )

    def _environment(self, container: Any) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in container.get("env", []):
            if "value" in each:
                found[each["name"]] = _filled(each["value"], found)
            elif "fieldRef" in each["valueFrom"]:
                assert each["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
                found[each["name"]] = self.host.address
            else:
                assert each["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
                found[each["name"]] = str(container["resources"]["limits"]["cpu"])
        return found

    def _placed(self, text: str) -> str:
        for path, place in self._places.items():
            text = re.sub(rf"(?<![\w/.-]){re.escape(path)}(?![\w.-])", place, text)
        return text


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """As Kubernetes fills in $(NAME)."""
    return re.sub(r"\$\((\w+)\)", lambda match: variables.get(match[1], match[0]), text)
