"""The image of deploy/docker, built by buildah on a base of Debian's packages, and a server in it.

There is no engine here and no registry: buildah runs the steps in a chroot, and the base is what mmdebstrap
unpacks, named by its digest as a registry's would be.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, ROOT, tool

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(2400)]

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# In the container: a server of the bundled model, asked as a client would, and told to end.
SERVE = """
set -eu
expertmesh serve /model --grpc-address 127.0.0.1:50951 --http-address off --control-address off \\
  --withdrawal-grace 0 &
expertmesh health 127.0.0.1:50951 --timeout 120
expertmesh client 127.0.0.1:50951 --prompt "def main():" --max-tokens 8
kill -TERM "$!"
wait "$!"
"""


class Buildah:
    """With images of its own in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        places = (f"--root={folder / 'images'}", f"--runroot={folder / 'run'}")
        self._command = [tool("buildah"), "--storage-driver=overlay", *places]

    def run(self, *arguments: str, seconds: float = 300) -> str:
        """Its last line. AssertionError with what it said where it fails."""
        done = subprocess.run(
            [*self._command, *arguments],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout.strip()

    def close(self) -> None:
        self.run("rm", "--all")
        self.run("rmi", "--all", "--force")


def make_base(buildah: Buildah) -> str:
    """A Debian with apt and nothing more; its name with its digest."""
    archive = buildah.folder / "base.tar"
    mirror = [tool("mmdebstrap"), "--variant=minbase", "--include=ca-certificates", "bookworm", str(archive)]
    subprocess.run(mirror, check=True, capture_output=True, timeout=600)
    container = buildah.run("from", "scratch")
    buildah.run("add", "--quiet", container, str(archive))
    buildah.run("commit", "--quiet", container, "localhost/debian:12-slim")
    (image,) = json.loads(buildah.run("images", "--json"))
    return f"localhost/debian@{image['digest']}"


def pip_settings(folder: Path) -> list[str]:
    """What pip needs on this machine beyond what a Dockerfile says: its CA, and wheels that lie here."""
    mounts = [f"--volume={CERTIFICATES}:{CERTIFICATES}:ro"]
    if wheels := os.environ.get("PIP_FIND_LINKS"):
        settings = folder / "pip.conf"
        settings.write_text(f"[global]\nfind-links = {wheels}\n")
        mounts += [f"--volume={wheels}:{wheels}:ro", f"--volume={settings}:/etc/pip.conf:ro"]
    return mounts


@pytest.fixture(scope="module")
def image() -> Iterator[tuple[Buildah, str]]:
    with tempfile.TemporaryDirectory(prefix="em-image-", ignore_cleanup_errors=True) as name:
        buildah = Buildah(Path(name))
        # Of PyPI: what lies here is preferred, and the other index may be out of reach.
        arguments = ["TORCH_INDEX=https://pypi.org/simple", f"DEBIAN_IMAGE={make_base(buildah)}"]
        buildah.run(
            *(
                "build",
                "--isolation=chroot",
                "--format=docker",
                "--target=cpu",
                "--tag=localhost/expertmesh:cpu",
            ),
            *(f"--build-arg={argument}" for argument in arguments),
            *pip_settings(buildah.folder),
            f"--file={DEPLOY / 'docker' / 'Dockerfile'}",
            str(ROOT),
            seconds=2000,
        )
        yield buildah, "localhost/expertmesh:cpu"
        buildah.close()


def test_the_image_is_built_as_it_shall_be_and_serves(image: tuple[Buildah, str]) -> None:
    buildah, name = image
    config = json.loads(buildah.run("inspect", "--type=image", name))["Docker"]["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["tini", "--", "expertmesh"]
    assert config["Healthcheck"]["Test"][-1] == "exec expertmesh health $EXPERTMESH_HEALTH"
    container = buildah.run("from", "--quiet", name)
    volume = f"--volume={ROOT / 'demo' / 'checkpoint'}:/model:ro"

    def inside(script: str) -> str:
        return buildah.run("run", "--isolation=chroot", volume, container, "--", "sh", "-c", script)

    assert inside("id -u; id -g").split() == ["10001", "10001"]
    # Neither a compiler nor the sources it was built of, and nothing that its user could change.
    assert inside("command -v gcc pip-compile git || echo none") == "none"
    assert inside("ls -d /source 2> /dev/null || echo none") == "none"
    assert inside("find /opt /usr /etc -writable -not -type l 2> /dev/null | head -3") == ""
    said = inside(SERVE)
    assert "ready" in said.splitlines()
    assert "READY grpc=127.0.0.1:50951 workers=2 " in said
