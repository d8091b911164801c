"""Every example of docs/grpc.md is run against a real server."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import DEMO_CHECKPOINT, Server

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "grpc.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("docs") / "log"
    with Server(str(DEMO_CHECKPOINT), "--workers", "0", log=log) as running:
        running.wait_ready()
        yield running


def at(server: Server, example: str) -> str:
    example = example.replace("127.0.0.1:50051", server.address)
    return example.replace("127.0.0.1:50052", server.address_of("control"))


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python(server: Server, number: int) -> None:
    code = at(server, blocks("python")[number])
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_shell(server: Server) -> None:
    (script,) = blocks("sh")
    command = f'expertmesh() {{ {sys.executable} -m coordinator.cli "$@"; }}\nset -e\n{at(server, script)}'
    result = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stderr
    assert '"finish_reason": "stop"' in result.stdout
    assert "routed tokens/s" in result.stdout


def test_node(server: Server) -> None:
    """Where its two packages are installed; `make examples` installs them."""
    modules = ROOT / "node_modules" / "@grpc"
    if shutil.which("node") is None or not modules.is_dir():
        pytest.skip("node with @grpc/grpc-js and @grpc/proto-loader is not here: make examples")
    result = subprocess.run(
        ["node", "docs/examples/generate.js", server.address, "def main():"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("20 tokens")
