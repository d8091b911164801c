"""A cluster by one command each: head, joiners, a server on them, and how each of them ends."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from expert_workers.machines.cluster_folder import JOIN_TOKEN, RAY_TOKEN
from expert_workers.machines.join_token import JoinToken
from expertmesh import Client, ControlClient
from tests.coordinator.api.certificates import write_private
from tests.integration.machines import Machine, head, join
from tests.integration.processes import (
    DEMO_CHECKPOINT,
    Server,
    assert_one_line_error,
    children,
    run_command,
    wait_gone,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A head that runs as long as these tests."""
    with head(tmp_path_factory.mktemp("cluster")) as machine:
        yield machine.wait_ready()


def error_of(machine: Machine) -> str:
    """The one line that a joiner which is refused ends with."""
    assert machine.process.wait(60) == 1, machine.log
    last = machine.log.strip().splitlines()[-1]
    assert last.startswith("expertmesh join: error: "), machine.log
    return last


def test_a_server_on_machines_that_have_joined(cluster: Machine, tmp_path: Path) -> None:
    with join(tmp_path, cluster, 2) as one, join(tmp_path, cluster, 3) as other:
        one.wait_ready()
        other.wait_ready()
        checks = [line for line in one.log.splitlines() if line.startswith(("ok ", "warning ", "error "))]
        assert len(checks) > 12
        assert not [line for line in checks if line.startswith("error")]
        cluster_option = f"--cluster={cluster.folder}"
        with Server(
            str(DEMO_CHECKPOINT), cluster_option, "--workers-per-node=1", log=tmp_path / "serve"
        ) as server:
            server.wait_ready()
            with Client(server.address) as client:
                tokens = client.generate("def f(", max_tokens=8, temperature=0, return_token_ids=True)
            assert len(tokens.token_ids) == 8
            with ControlClient(server.address_of("control")) as control:
                workers = control.topology()
            assert {worker.host for worker in workers} == {"127.0.0.2", "127.0.0.3"}
            assert_no_secret(
                cluster, [cluster.process.pid, one.process.pid, other.process.pid, server.process.pid]
            )
            assert server.stop() == 0
        found = run_command("doctor", cluster.value("enrol"), f"--folder={cluster.folder}")
        assert found.returncode == 0, found.stdout
        for address in ("127.0.0.2", "127.0.0.3", "127.0.0.9"):
            assert f"machine {address}\n" in found.stdout
        assert found.stdout.count("other machines: 2 can be reached") == 3
        below = children(one.process.pid) | children(other.process.pid)
        assert one.stop() == 0, one.log
        assert other.stop(signal.SIGINT) == 0, other.log
        assert not wait_gone(below | one.pids() | other.pids())


def assert_no_secret(cluster: Machine, roots: list[int]) -> None:
    """In no argument and no environment of any process."""
    token = JoinToken.read(cluster.folder / JOIN_TOKEN)
    secrets = [token.secret.encode(), (cluster.folder / RAY_TOKEN).read_bytes()]
    pids = set(roots).union(*(children(root) for root in roots))
    assert len(pids) > 10
    for pid in pids:
        for name in ("cmdline", "environ"):
            try:
                text = Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue
            assert not [secret for secret in secrets if secret in text], (pid, name)


def test_what_a_joiner_is_refused_for(cluster: Machine, tmp_path: Path) -> None:
    token = JoinToken.read(cluster.folder / JOIN_TOKEN)
    wrong = write_private(tmp_path / "wrong", JoinToken("ab" * 32, token.ca).line().encode())
    with join(tmp_path, cluster, 4, f"--token-file={wrong}") as joiner:
        assert "refuses: the join token is not this cluster's" in error_of(joiner)
    other = write_private(tmp_path / "other", JoinToken(token.secret, "ab" * 32).line().encode())
    with join(tmp_path, cluster, 5, f"--token-file={other}") as joiner:
        assert "has another CA than the join token names" in error_of(joiner)
    port = cluster.value("enrol").rpartition(":")[2]
    with join(tmp_path, cluster, 6, f"--node-port={port}") as joiner:
        line = error_of(joiner)
        assert f"{port} (Ray's node manager): Address already in use" in line
        assert "--node-port" in line
    with join(tmp_path, cluster, 7, f"--certificates={tmp_path}") as joiner:
        assert "leave out --certificates" in error_of(joiner)


def test_a_node_that_lost_its_raylet_comes_back(cluster: Machine, tmp_path: Path) -> None:
    with join(tmp_path, cluster, 2) as node:
        node.wait_ready()
        (raylet,) = (pid for pid in children(node.process.pid) if name_of(pid) == "raylet")
        os.kill(raylet, signal.SIGKILL)
        wait_for(lambda: "in the cluster again" in node.log, 60, node)
        assert raylet not in children(node.process.pid)
        assert node.stop() == 0


def test_nothing_is_left_of_a_joiner_that_was_killed(cluster: Machine, tmp_path: Path) -> None:
    with join(tmp_path, cluster, 2) as node:
        node.wait_ready()
        below = children(node.process.pid)
        assert len(below) > 3
        node.process.kill()
        node.process.wait()
        assert not wait_gone(below | node.pids(), 20)


def test_a_signal_at_any_time_of_a_start(cluster: Machine, tmp_path: Path) -> None:
    """From the first check on, through Ray's start, to a node that is ready."""
    for at, pause in enumerate((0.2, 0.9, 1.6, 2.3)):
        with join(tmp_path, cluster, 10 + at) as node:
            wait_for(lambda: "starting checks" in node.log, 30, node)
            time.sleep(pause)
            below = children(node.process.pid)
            code = node.stop(signal.SIGINT if at % 2 else signal.SIGTERM)
            assert code == 0, node.log
            assert not wait_gone(below | node.pids(), 20), node.log


def test_a_second_signal_ends_a_joiner_at_once(cluster: Machine, tmp_path: Path) -> None:
    with join(tmp_path, cluster, 2) as node:
        node.wait_ready()
        node.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "leaving" in node.log, 20, node)
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(20) == 0


def test_a_head_that_comes_back_has_its_joiners_again(tmp_path: Path) -> None:
    ports = ["--port=9479", "--enrol-port=9480"]
    with head(tmp_path, *ports) as first:
        first.wait_ready()
        kept = {
            name: (first.folder / name).read_bytes() for name in ("own-ca.pem", "ray.token", "join.token")
        }
        second = run_command("head", "--address=127.0.0.9", f"--folder={first.folder}", "--enrol-port=9481")
        assert_one_line_error(second, str(first.folder), f"process {first.process.pid} uses it")
        with join(tmp_path, first, 2, "--head-timeout=120") as node:
            node.wait_ready()
            below = children(first.process.pid)
            first.process.kill()
            first.process.wait()
            assert not wait_gone(below | first.pids(), 20)
            with head(tmp_path, *ports) as again:
                again.wait_ready()
                assert {name: (again.folder / name).read_bytes() for name in kept} == kept
                wait_for(lambda: "in the cluster again" in node.log, 90, node)
                assert again.stop() == 0
            shutil.rmtree(first.folder)


def test_a_joiner_gives_up_when_its_head_stays_away(tmp_path: Path) -> None:
    with head(tmp_path) as first:
        first.wait_ready()
        with join(tmp_path, first, 2, "--head-timeout=3") as node:
            node.wait_ready()
            below = children(node.process.pid)
            assert first.stop(signal.SIGINT) == 0
            line = error_of(node)
            assert "cannot be reached" in line
            assert "tried for 3 s (--head-timeout): start the head again" in line
            assert not wait_gone(below | node.pids())


def test_a_head_whose_gcs_dies_says_so(tmp_path: Path) -> None:
    with head(tmp_path) as machine:
        machine.wait_ready()
        below = children(machine.process.pid)
        (gcs,) = (pid for pid in below if name_of(pid) == "gcs_server")
        os.kill(gcs, signal.SIGKILL)
        assert machine.process.wait(60) == 1
        assert "Ray's gcs_server has died, and with it the cluster" in machine.log
        assert not wait_gone(below | machine.pids())


def test_a_head_refuses_what_is_open(tmp_path: Path) -> None:
    folder = f"--folder={tmp_path / 'x'}"
    refused = run_command("head", "--no-tls", "--address=192.0.2.1", folder)
    assert_one_line_error(refused, "192.0.2.1", "without TLS", "--insecure")
    assert_one_line_error(run_command("head", "--address=192.0.2.1", folder), "192.0.2.1:6380", "--address")


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def wait_for(condition: object, timeout: float, machine: Machine) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, machine.log
        assert machine.process.poll() is None, machine.log
        time.sleep(0.05)
