"""A cluster by one command each: head, joiners, a server on them, and how each of them ends."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from expert_workers.machines.cluster_folder import JOIN_TOKEN, RAY_TOKEN
from expert_workers.machines.join_token import JoinToken
from expertmesh import Client, ControlClient
from tests.coordinator.api.certificates import DAY, Authority, write_private
from tests.integration.machines import HEAD_ADDRESS, Machine, head, join
from tests.integration.processes import (
    DEMO_CHECKPOINT,
    Server,
    assert_one_line_error,
    children,
    run_command,
    wait_gone,
)

# Some with each change, the others with `make chaos`: each takes ten seconds and more.
pytestmark = pytest.mark.timeout(280)


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


@pytest.mark.long
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
                expected = generate(client)
            assert len(expected) == 8
            with ControlClient(server.address_of("control")) as control:
                workers = control.topology()
            assert {worker.host for worker in workers} == {"127.0.0.2", "127.0.0.3"}
            assert_no_secret(cluster, [each.process.pid for each in (cluster, one, other, server)])
            found = run_command("doctor", cluster.value("enrol"), f"--folder={cluster.folder}")
            assert found.returncode == 0, found.stdout
            for address in ("127.0.0.2", "127.0.0.3", "127.0.0.9"):
                assert f"machine {address}\n" in found.stdout
            assert found.stdout.count("other machines: 2 can be reached") == 3
            below = children(other.process.pid)
            answers = while_it_leaves(server, other)
            assert not wait_gone(below | other.pids())
            assert len(answers) > 3
            assert set(answers) == {expected}
            assert server.stop() == 0
        below = children(one.process.pid)
        assert one.stop() == 0, one.log
        assert not wait_gone(below | one.pids())


def while_it_leaves(server: Server, machine: Machine) -> list[tuple[int, ...]]:
    """What one client gets, a request after the other, from before Ctrl-C until after the machine's end."""
    with Client(server.address) as client, ThreadPoolExecutor(1) as pool:
        ended = pool.submit(machine.stop, signal.SIGINT)
        answers = []
        while not ended.done():
            answers.append(generate(client))
        assert ended.result() == 0, machine.log
        assert "workers are still here" not in machine.log
        return [*answers, generate(client)]


def generate(client: Client) -> tuple[int, ...]:
    return client.generate("def f(", max_tokens=8, temperature=0, return_token_ids=True).token_ids


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


@pytest.mark.long
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


@pytest.mark.chaos
def test_a_node_that_lost_its_raylet_comes_back(cluster: Machine, tmp_path: Path) -> None:
    with join(tmp_path, cluster, 2) as node:
        node.wait_ready()
        (raylet,) = (pid for pid in children(node.process.pid) if name_of(pid) == "raylet")
        os.kill(raylet, signal.SIGKILL)
        wait_for(partial(said, node, "in the cluster again"), 60, node)
        assert raylet not in children(node.process.pid)
        assert node.stop() == 0


@pytest.mark.long
def test_nothing_is_left_of_a_joiner_that_was_killed(cluster: Machine, tmp_path: Path) -> None:
    with join(tmp_path, cluster, 2) as node:
        node.wait_ready()
        below = children(node.process.pid)
        assert len(below) > 3
        node.process.kill()
        node.process.wait()
        assert not wait_gone(below | node.pids(), 20)


@pytest.mark.chaos
def test_a_signal_at_any_time_of_a_joiner_s_start(cluster: Machine, tmp_path: Path) -> None:
    """From the first check on, through Ray's start, to a node that is ready."""
    for at, pause in enumerate((0.2, 0.9, 1.6, 2.3)):
        with join(tmp_path, cluster, 10 + at) as node:
            wait_for(partial(said, node, "starting checks"), 30, node)
            time.sleep(pause)
            below = children(node.process.pid)
            code = node.stop(signal.SIGINT if at % 2 else signal.SIGTERM)
            assert code == 0, node.log
            assert not wait_gone(below | node.pids(), 20), node.log


@pytest.mark.chaos
def test_a_second_signal_ends_a_joiner_at_once(cluster: Machine, tmp_path: Path) -> None:
    with join(tmp_path, cluster, 2) as node:
        node.wait_ready()
        node.process.send_signal(signal.SIGTERM)
        wait_for(partial(said, node, "leaving"), 20, node)
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(20) == 0


@pytest.mark.chaos
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
                # Ray by itself takes a minute to find out.
                wait_for(partial(said, node, "in the cluster again"), 45, node)
                assert again.stop() == 0
            shutil.rmtree(first.folder)


@pytest.mark.chaos
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


@pytest.mark.chaos
def test_a_head_whose_gcs_dies_says_so(tmp_path: Path) -> None:
    with head(tmp_path) as machine:
        machine.wait_ready()
        below = children(machine.process.pid)
        (gcs,) = (pid for pid in below if name_of(pid) == "gcs_server")
        os.kill(gcs, signal.SIGKILL)
        assert machine.process.wait(60) == 1
        assert "Ray's gcs_server has died, and with it the cluster" in machine.log
        assert not wait_gone(below | machine.pids())


@pytest.mark.chaos
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


def wait_for(condition: Callable[[], bool], timeout: float, machine: Machine) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, machine.log
        assert machine.process.poll() is None, machine.log
        time.sleep(0.05)


@pytest.mark.chaos
def test_a_signal_at_any_time_of_a_head_s_start(tmp_path: Path) -> None:
    for at, pause in enumerate((0.0, 0.6, 1.2, 1.8)):
        with head(tmp_path, name=f"head-{at}") as machine:
            wait_for(partial(said, machine, "starting Ray"), 30, machine)
            time.sleep(pause)
            below = children(machine.process.pid)
            assert machine.stop(signal.SIGTERM if at % 2 else signal.SIGINT) == 0, machine.log
            assert not wait_gone(below | machine.pids(), 20), machine.log


@pytest.mark.chaos
def test_certificates_of_the_user_s(tmp_path: Path) -> None:
    authority = Authority()
    for name, address in (("of-head", HEAD_ADDRESS), ("of-node", "127.0.0.2"), ("of-other", "127.0.0.77")):
        (tmp_path / name).mkdir()
        certificate, key = authority.sign(addresses=["127.0.0.1", address], ends=30 * DAY)
        for file, data in (("ca.pem", authority.pem), ("node.pem", certificate), ("node.key", key)):
            write_private(tmp_path / name / file, data)
    with head(tmp_path, f"--certificates={tmp_path / 'of-head'}") as machine:
        machine.wait_ready()
        with join(tmp_path, machine, 2) as node:
            assert "bring certificates of their own: say --certificates DIR" in error_of(node)
        with join(tmp_path, machine, 3, f"--certificates={tmp_path / 'of-other'}") as node:
            assert "is for another name or address" in error_of(node)
        with join(tmp_path, machine, 2, f"--certificates={tmp_path / 'of-node'}") as node:
            node.wait_ready()
            assert (node.folder / "node.pem").read_bytes() == (tmp_path / "of-node/node.pem").read_bytes()
            found = run_command("doctor", machine.value("enrol"), f"--folder={machine.folder}")
            assert found.returncode == 0, found.stdout
            assert node.stop() == 0


@pytest.mark.chaos
def test_without_tls_where_that_is_asked_for(tmp_path: Path) -> None:
    with head(tmp_path, "--no-tls") as machine:
        machine.wait_ready()
        assert machine.value("tls") == "off"
        with join(tmp_path, machine, 2) as node:
            assert node.wait_ready().value("tls") == "off"
            assert node.stop() == 0


def said(machine: Machine, text: str) -> bool:
    return text in machine.log


@pytest.mark.long
def test_a_machine_that_was_told_to_leave_stays_away(cluster: Machine, tmp_path: Path) -> None:
    with join(tmp_path, cluster, 2) as node:
        node.wait_ready()
        below = children(node.process.pid)
        assert run_command("leave", f"--folder={node.folder}").returncode == 0
        assert node.process.wait(30) == 0, node.log
        assert not wait_gone(below | node.pids())
    with join(tmp_path, cluster, 2) as node:
        node.wait_ready()
        assert node.stop() == 0
