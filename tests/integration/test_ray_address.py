"""Workers on a cluster that is not ours: they come, they go, and nobody takes another's."""

from pathlib import Path

import pytest

from expertmesh import Client, ControlClient
from tests.integration.processes import DEMO_CHECKPOINT, Server, wait_gone
from tests.integration.ray_cluster import Cluster
from tests.integration.shared_cluster import Shared

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]


@pytest.fixture
def running(shared_cluster: Shared) -> Cluster:
    return shared_cluster.cluster


def serve(running: Cluster, log: Path, *arguments: str) -> Server:
    return Server(
        str(DEMO_CHECKPOINT), "--ray-address", running.address, *arguments, log=log, env=running.env
    )


def generate(server: Server) -> tuple[int, ...]:
    with Client(server.address) as client:
        return client.generate("def f(", max_tokens=8, temperature=0, return_token_ids=True).token_ids


def test_workers_end_with_the_server_and_the_cluster_stays(running: Cluster, tmp_path: Path) -> None:
    answers = []
    for number in range(2):
        with serve(running, tmp_path / f"log-{number}") as server:
            server.wait_ready()
            answers.append(generate(server))
            assert server.stop() == 0
    assert len(answers[0]) == 8
    assert answers[0] == answers[1], "the second found the names free"


def test_workers_left_by_a_killed_coordinator_are_used_or_replaced_when_asked(
    running: Cluster, tmp_path: Path
) -> None:
    with serve(running, tmp_path / "first") as server:
        server.wait_ready()
        expected, pids = generate(server), worker_pids(server)
        server.kill_whole()
    with serve(running, tmp_path / "second", "--keep-workers") as server:
        server.wait_ready()
        assert generate(server) == expected
        assert worker_pids(server) == pids
        assert server.stop() == 0
    with serve(running, tmp_path / "third", "--replace-workers") as server:
        server.wait_ready()
        assert generate(server) == expected
        assert not worker_pids(server) & pids
        assert server.stop() == 0
    assert not wait_gone(pids)


def worker_pids(server: Server) -> set[int]:
    with ControlClient(server.address_of("control")) as control:
        return {int(worker.pid) for worker in control.topology()}
