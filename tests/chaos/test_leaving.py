"""Machines that leave a cluster and join it, while clients are served: none loses a request or a token."""

import subprocess
import sys
from pathlib import Path

import pytest

from scaling.hosts.namespaces import Host, Network
from scaling.hosts.ray_hosts import RayHosts, pids_of, wait_until
from tests.chaos.load import Load, check, golden_of
from tests.chaos.serve_hosts import ServeHosts
from tests.integration.processes import DEMO_CHECKPOINT, Server

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300), pytest.mark.usefixtures("capable")]

PORTS = range(20100, 20104)
_LEAVE = """
import sys
from expert_workers.cluster.leave import leave
print("LEFT" if leave(60.0, sys.argv[1]) else "STAYS")
"""


def leave(ray: RayHosts, host: Host) -> str:
    command = host.command(sys.executable, "-P", "-c", _LEAVE, ray.address)
    done = subprocess.run(command, env=ray.env, capture_output=True, text=True, timeout=120, check=False)
    return (done.stdout.split() or [done.stderr.strip()])[-1]


def listening(host: Host) -> set[int]:
    lines = host.run("ss", "-Hltn").splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in lines}


def test_a_machine_leaves_and_comes_back_under_load(tmp_path: Path) -> None:
    """Two workers a machine. Those of the machine that leaves have the lowest ranks."""
    with Server(str(DEMO_CHECKPOINT), "--workers=0", log=tmp_path / "golden") as alone:
        alone.wait_ready()
        golden = golden_of(alone.address)
    with Network() as network:
        head, *workers = (network.host(name) for name in ("head", "w0", "w1"))
        env = {"EXPERTMESH_DATA_PORTS": f"{PORTS[0]}-{PORTS[-1]}"}
        with (
            RayHosts(head, workers, env=env) as ray,
            ServeHosts(ray, "--workers-per-node=2", "--min-machines=2", log=tmp_path / "log") as server,
        ):
            server.wait_ready()
            spread = {worker.name: 2 for worker in workers}
            assert {name: len(pids) for name, pids in server.actors().items()} == spread
            assert all(listening(host) & {*PORTS} == {*PORTS[:2]} for host in workers)
            first = next(host for host in workers if server.workers()[0] in server.actors()[host.name])
            with Load(server.address) as load:
                load.wait_for_more()
                assert leave(ray, first) == "LEFT"
                assert not pids_of(first, "ray::ExpertActor")
                assert server.num_ready() == 2
                load.wait_for_more()
                ray.restart(first)
                wait_until(lambda: server.num_ready() == 4, 60.0, "no workers on the machine that is back")
                load.wait_for_more()
            check(load.streams, golden)
            assert server.num_losses() == 0
            assert "STAYS" not in leave(ray, head)


def test_a_machine_with_an_empty_disk_fetches_its_own_experts(tmp_path: Path) -> None:
    """The first from the coordinator's machine, the next also from the first."""
    with Server(str(DEMO_CHECKPOINT), "--workers=0", log=tmp_path / "golden") as alone:
        alone.wait_ready()
        golden = golden_of(alone.address)
    with Network() as network:
        head, *workers = (network.host(name) for name in ("head", "w0", "w1"))
        options = ("--workers-per-node=1", "--replicas=2", "--fetch-rate=1")
        with (
            RayHosts(head, workers, hidden=DEMO_CHECKPOINT) as ray,
            ServeHosts(ray, *options, log=tmp_path / "log") as server,
        ):
            server.wait_ready()
            with Load(server.address) as load:
                load.wait_for_more()
                wait_until(lambda: server.num_ready() == 2, 60.0, "not two workers")
                load.wait_for_more()
            check(load.streams, golden)
            files = DEMO_CHECKPOINT.glob("experts/*/*.safetensors")
            experts = sum(path.stat().st_size for path in files)
            for host in workers:
                cached = [path for path in ray.cache(host).rglob("*.safetensors") if "/files/" in str(path)]
                fetched = sum(path.stat().st_blocks * 512 for path in cached)
                assert 0.99 * experts <= fetched <= 1.1 * experts + (256 << 10)
            assert not list(ray.cache(head).glob("*"))
