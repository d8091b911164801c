"""The README's Python examples, run as they are written."""

import re
import subprocess
import sys

import pytest

from tests.integration.processes import DEMO_CHECKPOINT, Server

ROOT = DEMO_CHECKPOINT.parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
ADDRESS = "127.0.0.1:50051"


def run_example(source: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("kind", "said"), [("Client", " length 20"), ("AsyncClient", "['")])
def test_the_client_examples(demo_server: Server, kind: str, said: str) -> None:
    (example,) = (source for source in EXAMPLES if re.search(rf"from expertmesh import {kind}\b", source))
    # Another port only, so that the test can run beside a server.
    assert said in run_example(example.replace(ADDRESS, demo_server.address))


def test_the_model_example() -> None:
    (example,) = (source for source in EXAMPLES if "AssembledModel" in source)
    assert "7314048 3757440" in run_example(example)


@pytest.mark.parametrize("name", re.findall(r"^  ([\w/]+\.(?:py|md))\b", README, flags=re.MULTILINE))
def test_the_file_map_is_true(name: str) -> None:
    assert list(ROOT.rglob(f"{name}")), name
