"""Makes .venv-deploy, the tools that check the files of deploy/: `python scripts/deploy_tools.py`.

Those of PyPI are pinned in tests/deploy/requirements.txt. Prometheus and its promtool are Debian's: the
package is downloaded and unpacked, not installed, so that this needs no root and starts no service. What real
Slurm clusters, machines of systemd and images are made with is installed where this runs as root, and starts
no service either. What cannot be had here is said, and the tests that need it say so again as they fail.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-deploy"
REQUIREMENTS = ROOT / "tests" / "deploy" / "requirements.txt"
# Where a package of Debian's is unpacked, and a command that it has.
UNPACKED = VENV / "debian"
DEBIAN = {"prometheus": "promtool"}
# A command of each package that the tests need installed.
SYSTEM = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurm-client": "sbatch",
    "munge": "munged",
    "systemd-container": "systemd-nspawn",
    "mmdebstrap": "mmdebstrap",
    "buildah": "buildah",
    "iproute2": "tc",
    "iptables": "iptables",
    "openssl": "openssl",
}
# What Debian's packages ask before they start a service; 101 is no.
POLICY, NO_SERVICES = Path("/usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n"


class ToolsError(Exception):
    """One line for the person at the terminal."""


def main() -> int:
    try:
        if python_tools():
            print(f"made {VENV.name}", flush=True)
        for package, command in DEBIAN.items():
            debian_tool(package, command)
        system_packages()
    except (ToolsError, OSError) as error:
        print(f"deploy_tools: {error}", file=sys.stderr)
        return 1
    return 0


def python_tools() -> bool:
    """Installs what is pinned where that has changed; says whether there was something to do."""
    mark = VENV / ".installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text(encoding="ascii") == wanted:
        return False
    venv.create(VENV, clear=True, with_pip=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "-r", str(REQUIREMENTS)])
    mark.write_text(wanted, encoding="ascii")
    return True


def debian_tool(package: str, command: str) -> None:
    """Unpacks a package of Debian's below .venv-deploy where its command is not here yet."""
    if (UNPACKED / "usr" / "bin" / command).is_file() or shutil.which(command):
        return
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        print(f"{command} is missing: this is no Debian; install Prometheus by hand", flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        found = list(Path(folder).glob("*.deb"))
        if done.returncode != 0 or not found:
            print(
                f"{command} is missing: apt-get download {package} failed ({last_line(done.stderr)});",
                end=" ",
            )
            print("as root: apt-get update", flush=True)
            return
        run(["dpkg-deb", "-x", str(found[0]), str(UNPACKED)])
    print(f"unpacked {package} of {platform.freedesktop_os_release()['PRETTY_NAME']}", flush=True)


def system_packages() -> None:
    """Installs those of `SYSTEM` that are not here, or says which they are."""
    missing = [package for package, command in SYSTEM.items() if shutil.which(command) is None]
    if not missing:
        return
    install = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"not installed: {', '.join(missing)}; as root on Debian: {' '.join(install)}", flush=True)
        return
    print(f"installing {', '.join(missing)}", flush=True)
    with services_kept_from_starting():
        run(["apt-get", "-qq", "update"])
        run(install)


@contextmanager
def services_kept_from_starting() -> Iterator[None]:
    if POLICY.exists():
        yield
        return
    POLICY.write_text(NO_SERVICES, encoding="ascii")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolsError(f"{command[0]} failed: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it does not say why"


if __name__ == "__main__":
    sys.exit(main())
