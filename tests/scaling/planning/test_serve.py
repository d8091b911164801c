"""A real server that follows a plan."""

import json
from pathlib import Path

import pytest

from expertmesh import Client, ControlClient
from tests.integration.processes import DEMO_CHECKPOINT, Server, run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MACHINES = """
link: {gbit: 10, delay_ms: 0.05}
machines:
  - {name: w0, cores: 1, memory_gb: 4, gbytes_per_s: 5, gflops: 50}
  - {name: w1, cores: 2, memory_gb: 4, gbytes_per_s: 10, gflops: 100}
"""
TIMEOUT = 300.0


def test_workers_hold_what_was_planned_and_tokens_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "machines.yaml").write_text(MACHINES)
    file = tmp_path / "plan.json"
    told = run_command(
        *("plan", str(DEMO_CHECKPOINT), "--machines", str(tmp_path / "machines.yaml"), "--dtype=float32"),
        *("--trace=zipf:1.2", "--survive=0", "--seconds=0.5", "--no-what-if", f"--out={file}"),
        timeout=TIMEOUT,
    )
    assert told.returncode == 0, told.stderr
    assert "tokens/s" in told.stdout
    plan = json.loads(file.read_text())
    with Server(str(DEMO_CHECKPOINT), f"--plan={file}", log=tmp_path / "log") as server:
        server.wait_ready(timeout=TIMEOUT)
        with ControlClient(server.address_of("control")) as control:
            workers = control.topology(include_experts=True)
        held = {
            worker.rank: {str(e.layer): sorted(e.expert_ids) for e in worker.layers} for worker in workers
        }
        with Client(server.address_of("grpc")) as client:
            done = client.generate("def main():", max_tokens=12, temperature=0, return_token_ids=True)
    assert held == {rank: worker["experts"] for rank, worker in enumerate(plan["workers"])}
    assert len(done.token_ids) == 12
    alone = run_command(
        *("generate", str(DEMO_CHECKPOINT), "--prompt=def main():", "--max-tokens=12", "--temperature=0"),
        "--json",
        timeout=TIMEOUT,
    )
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout)["token_ids"] == list(done.token_ids)
