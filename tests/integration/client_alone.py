"""The client's wheel, built and installed into a virtual environment of its own, without any network.

pip builds it with the setuptools of this environment. What it says that it needs, and what that needs, is
linked file by file from this environment, by what each distribution has recorded: an import of anything that
the wheel does not declare fails there.
"""

import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class ClientAlone:
    """`wheel` is the file that is installed in the environment at `folder`."""

    folder: Path
    wheel: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def command(self) -> str:
        return str(self.folder / "bin" / "expertmesh")

    @property
    def packages(self) -> Path:
        return site_packages(self.folder)


def install_client(folder: Path) -> ClientAlone:
    """`folder` is empty."""
    wheel = build_wheel(ROOT / "client", folder / "wheels")
    alone = ClientAlone(folder / "venv", wheel)
    venv.create(alone.folder, symlinks=True)
    pip("--python", alone.python, "install", "--no-deps", "--no-index", str(wheel))
    for name in closure(metadata.Distribution.at(next(alone.packages.glob("*.dist-info")))):
        link(metadata.distribution(name), alone.packages)
    return alone


def build_wheel(source: Path, out: Path) -> Path:
    """From a copy, for setuptools writes beside what it builds."""
    shutil.copytree(
        source, out / "source", ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    )
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(out / "source"))
    (wheel,) = out.glob("*.whl")
    return wheel


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def requirements(distribution: metadata.Distribution) -> Iterator[str]:
    """Names of what it needs here, without extras."""
    for text in distribution.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            yield canonicalize_name(needed.name)


def closure(distribution: metadata.Distribution) -> set[str]:
    """Names of all that it needs, and of all that those need."""
    found: set[str] = set()
    open_ = list(requirements(distribution))
    while open_:
        name = open_.pop()
        if name not in found:
            found.add(name)
            open_ += requirements(metadata.distribution(name))
    return found


def link(distribution: metadata.Distribution, packages: Path) -> None:
    """Makes the distribution's files be there, but its commands and compiled code."""
    for file in distribution.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(distribution.locate_file(file))).resolve())


def site_packages(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
