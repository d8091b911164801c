"""Expert workers as real Ray actors on a local cluster of our own, and what happens when they fail.

The cluster and its workers are started once; tests of the way to them run for each transport.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch

from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.cluster.ray_preflight import PATIENCE
from expert_workers.dispatch.options import OnLoss
from expert_workers.processes import Process, is_running
from expert_workers.transports.ray.fleet import actor_name
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.errors import ClusterError, ExpertsLostError, WorkerStartError
from moe_model.kernels.choice import choose_kernels
from moe_model.loading import load_local_experts
from moe_model.versions.local_experts import LocalExperts
from tests.expert_workers.fakes import make_routing, make_rows
from tests.integration.processes import stop, unmapped, wait_gone
from tests.integration.ray_experts import WAYS, Running, running, until

CONFIG = ModelConfig(d_model=32, n_heads=2, n_layers=2, d_ff=64, n_experts=5, top_k=2, vocab_size=32)
X_TD, ROUTING = make_rows(9, CONFIG), make_routing(9, CONFIG.n_experts, 2)
CALL_TIMEOUT = 1.0
# Seconds: the patience of a first look at a cluster, and what a busy machine adds. Ray alone would take 20.
SOON = PATIENCE + 5.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster.start_local(num_cpus=2, object_store_bytes=80 << 20)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("ray") / "checkpoint"
    initialise_checkpoint(path, CONFIG)
    return Checkpoint.open(path)


@pytest.fixture(scope="module")
def local(checkpoint: Checkpoint) -> LocalExperts:
    return load_local_experts(checkpoint, torch.float32, "cpu", choose_kernels("auto", "cpu"))


# The way of one machine with every change, the others with what takes long.
@pytest.fixture(
    scope="module",
    params=[way if way == "unix" else pytest.param(way, marks=pytest.mark.long) for way in WAYS],
)
def trio(request: pytest.FixtureRequest, cluster: RayCluster, checkpoint: Checkpoint) -> Iterator[Running]:
    """Three workers that hold every expert twice. A test that breaks one waits until it is back."""
    way = request.param
    with running(checkpoint, 3, 2, way=way, namespace=f"trio-{way}", call_timeout=CALL_TIMEOUT) as trio:
        yield trio


def test_workers_with_replicas_equal_local_experts(
    trio: Running, local: LocalExperts, checkpoint: Checkpoint
) -> None:
    for num_tokens in (1, 9, 64, 4000):
        x_TD, routing = make_rows(num_tokens, CONFIG), make_routing(num_tokens, CONFIG.n_experts, 2)
        for layer in range(CONFIG.n_layers):
            expected = local.forward(layer, x_TD, routing)
            assert torch.equal(trio.pool.forward(layer, x_TD, routing), expected)
    sizes = [tensor.nbytes for tensor in checkpoint.read_expert(0, 0).values()]
    infos = [trio.worker(rank).info for rank in range(3)]
    held = sum(info.num_bytes for info in infos if info is not None)
    assert held == 2 * CONFIG.n_layers * CONFIG.n_experts * sum(sizes)


def test_a_worker_killed_with_dispatches_in_flight_costs_no_result(
    trio: Running, local: LocalExperts
) -> None:
    pid, sizes = trio.pid(1), (1, 300, 7, 2000)
    inputs = [(make_rows(n, CONFIG), make_routing(n, CONFIG.n_experts, 2, n)) for n in sizes]
    expected = [local.forward(1, x_TD, routing) for x_TD, routing in inputs]
    for is_killed in (False, True, True):
        begun = [trio.pool.begin(1, x_TD, routing) for x_TD, routing in inputs]
        if is_killed and trio.worker(1).num_losses == 0:
            os.kill(pid, signal.SIGKILL)
        for dispatch, y_TD in zip(begun, expected, strict=True):
            assert torch.equal(trio.pool.finish(dispatch), y_TD)
    trio.until_back(1, pid)
    assert torch.equal(trio.pool.forward(1, X_TD, ROUTING), local.forward(1, X_TD, ROUTING))


def seconds_of(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def test_a_stopped_worker_is_routed_round_killed_and_replaced(trio: Running, local: LocalExperts) -> None:
    expected, pid = local.forward(1, X_TD, ROUTING), trio.pid(2)
    usual = seconds_of(lambda: trio.pool.forward(1, X_TD, ROUTING))
    stop(pid)
    started = time.monotonic()
    assert torch.equal(trio.pool.forward(1, X_TD, ROUTING), expected)
    # On a machine that has nothing else to do; where all is slow, more.
    assert time.monotonic() - started < CALL_TIMEOUT + 0.5 + 100 * usual
    trio.until_back(2, pid)
    assert not wait_gone({pid})
    assert torch.equal(trio.pool.forward(1, X_TD, ROUTING), expected)


@pytest.mark.long
def test_a_process_that_could_not_be_killed_is_killed_when_it_is_heard_of_again(
    trio: Running, local: LocalExperts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on a machine that was cut off: it must not serve until the order to kill it arrives late."""
    expected, pid = local.forward(1, X_TD, ROUTING), trio.pid(2)
    given_up = threading.Event()

    def fail(processes: frozenset[Process], timeout: float) -> frozenset[Process]:
        given_up.set()
        return processes

    with monkeypatch.context() as patched:
        patched.setattr("expert_workers.transports.ray.fleet.kill_and_wait", fail)
        stop(pid)
        assert torch.equal(trio.pool.forward(1, X_TD, ROUTING), expected)
        while not given_up.wait(0.01):
            trio.pool.idle()
    os.kill(pid, signal.SIGCONT)
    trio.until_back(2, pid)
    assert not wait_gone({pid})
    assert torch.equal(trio.pool.forward(1, X_TD, ROUTING), expected)


@pytest.mark.long
def test_without_a_replica_the_experts_are_loaded_elsewhere(
    cluster: RayCluster, checkpoint: Checkpoint, local: LocalExperts
) -> None:
    with running(checkpoint, 2, namespace="pair") as pair:
        pid = pair.pid(1)
        os.kill(pid, signal.SIGKILL)
        assert torch.equal(pair.pool.forward(1, X_TD, ROUTING), local.forward(1, X_TD, ROUTING))
        pair.until_back(1, pid)


@pytest.mark.long
def test_without_a_replica_and_without_patience_the_loss_is_told(
    cluster: RayCluster, checkpoint: Checkpoint, local: LocalExperts
) -> None:
    with running(checkpoint, 2, namespace="strict", on_loss=OnLoss.REPLICA) as pair:
        pid = pair.pid(1)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ExpertsLostError, match="no live worker holds expert"):
            pair.pool.forward(1, X_TD, ROUTING)
        pair.until_back(1, pid)
        assert torch.equal(pair.pool.forward(1, X_TD, ROUTING), local.forward(1, X_TD, ROUTING))


def test_a_worker_that_cannot_load_is_named_with_its_file_and_nothing_is_left(
    cluster: RayCluster, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    initialise_checkpoint(path, CONFIG)
    file = path / "experts" / "layer_0001" / "expert_0003.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    message = r"^worker \d: [^\n]*layer_0001/expert_0003.safetensors[^\n]*$"
    with (
        pytest.raises(WorkerStartError, match=message),
        running(Checkpoint.open(path), 2, namespace="broken"),
    ):
        pass
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(actor_name(0), namespace="broken")


def test_a_worker_that_is_not_ready_in_time_is_named(cluster: RayCluster, checkpoint: Checkpoint) -> None:
    with (
        pytest.raises(WorkerStartError, match=r"worker 0: not ready within 0.01 s"),
        running(checkpoint, 1, namespace="late", start_timeout=0.01),
    ):
        pass


def test_the_next_coordinator_gets_the_workers_as_they_are(
    cluster: RayCluster, checkpoint: Checkpoint, local: LocalExperts
) -> None:
    with running(checkpoint, 2, namespace="kept", client="first", keep=True) as first:
        pids = [first.pid(rank) for rank in range(2)]
    with running(checkpoint, 2, namespace="kept", client="second", epoch=2) as second:
        assert [second.pid(rank) for rank in range(2)] == pids
        assert [second.fleet.describe(rank, 10).epoch for rank in range(2)] == [2, 2]
        assert torch.equal(second.pool.forward(1, X_TD, ROUTING), local.forward(1, X_TD, ROUTING))


def test_a_second_coordinator_is_refused_until_it_takes_over(
    cluster: RayCluster, checkpoint: Checkpoint, local: LocalExperts
) -> None:
    said: list[str] = []
    with running(checkpoint, 2, namespace="both", client="first", keep=True, over=said.append) as first:
        pids = [first.pid(rank) for rank in range(2)]
        with (
            pytest.raises(WorkerStartError, match=r"worker \d: is in use by first: stop that one first"),
            running(checkpoint, 2, namespace="both", client="second", epoch=2, keep=True),
        ):
            pass
        assert torch.equal(first.pool.forward(1, X_TD, ROUTING), local.forward(1, X_TD, ROUTING))
        with running(checkpoint, 2, namespace="both", client="second", epoch=2, by_force=True) as second:
            assert torch.equal(second.pool.forward(1, X_TD, ROUTING), local.forward(1, X_TD, ROUTING))
            until(lambda: first.supervisor.is_fenced)
            assert "second has taken it over" in said[0]
            assert [second.pid(rank) for rank in range(2)] == pids


def test_nothing_is_left_open_after_close(
    cluster: RayCluster, checkpoint: Checkpoint, local: LocalExperts
) -> None:
    def use(epoch: int) -> None:
        with running(checkpoint, 1, namespace="leaks", epoch=epoch, keep=True) as one:
            assert torch.equal(one.pool.forward(1, X_TD, ROUTING), local.forward(1, X_TD, ROUTING))

    use(1)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for epoch in range(2, 5):
        use(epoch)
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files
    with running(checkpoint, 1, namespace="leaks", epoch=9):
        pass


def test_a_second_cluster_in_one_process_is_refused(cluster: RayCluster) -> None:
    with pytest.raises(ClusterError, match="already connected"):
        RayCluster.start_local()
    assert ray.is_initialized()


def silent(listener: socket.socket) -> None:
    """A port that takes connections and says nothing."""


def wrong(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n")


@pytest.mark.parametrize(
    ("server", "message"), [(silent, "cannot be reached: timed out"), (wrong, "something else listens there")]
)
def test_something_else_than_ray_is_told_soon(server: Callable[[socket.socket], None], message: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        thread = threading.Thread(target=server, args=(listener,))
        thread.start()
        started = time.monotonic()
        with pytest.raises(ClusterError, match=message):
            RayCluster.connect(f"127.0.0.1:{listener.getsockname()[1]}")
        assert time.monotonic() - started < SOON
        thread.join()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "no-such-host.invalid:6379", "ray", "ray://127.0.0.1:1", ":", "h:x"]
)
def test_an_address_that_cannot_be_used_is_told_soon(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"^Ray [^\n]*$"):
        RayCluster.connect(address)
    assert time.monotonic() - started < SOON


SCRIPT = """
import os, signal, sys
from expert_workers.processes import descendants
from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.transports.ray.fleet import FleetOptions, RayFleet
from expert_workers.transports.base import WorkerFailureError
from expert_workers.transports.stream.transport import StreamTransport
from expert_workers.worker.expert_worker import WorkerSpec

received = []

def mine(number, frame):
    received.append(number)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, mine)
    cluster = RayCluster.start_local(object_store_bytes=80 << 20)
    fleet = RayFleet(FleetOptions(WorkerSpec(0, sys.argv[1]), "script", StreamTransport()))
    for rank in range(2):
        fleet.start(rank)
    pids = [fleet.describe(rank, 60).pid for rank in range(2)]
    assert os.getpriority(os.PRIO_PROCESS, pids[0]) == os.getpriority(os.PRIO_PROCESS, 0)
    os.killpg(0, signal.SIGTERM)
    assert [fleet.describe(rank, 60).pid for rank in range(2)] == pids
    assert received == [signal.SIGTERM]
    os.kill(pids[0], signal.SIGKILL)
    while True:
        try:
            assert fleet.describe(0, 60).pid != pids[0]
            break
        except WorkerFailureError:
            pass
    os.kill(pids[1], signal.SIGSTOP)
    ours = descendants(os.getpid(), "raylet") | descendants(os.getpid(), "gcs_server")
    assert pids[1] in {process.pid for process in ours}
    fleet.end(range(2))
    fleet.close()
    cluster.close()
    print(cluster.folder, *(f"{process.pid}:{process.started}" for process in ours))
"""


HEADLESS = """
import os, sys, time
from expert_workers.processes import descendants, kill_and_wait
from expert_workers.cluster.ray_cluster import RayCluster, is_reachable
from expert_workers.transports.ray.fleet import FleetOptions, RayFleet
from expert_workers.transports.stream.transport import StreamTransport
from expert_workers.worker.expert_worker import WorkerSpec

if __name__ == "__main__":
    cluster = RayCluster.start_local(object_store_bytes=80 << 20)
    fleet = RayFleet(FleetOptions(WorkerSpec(0, sys.argv[1]), "headless", StreamTransport()))
    fleet.start(0)
    fleet.describe(0, 60)
    assert not kill_and_wait(descendants(os.getpid(), "gcs_server"), 10.0)
    # A process of several threads may be a zombie while one of them still keeps its port open.
    while is_reachable():
        pass
    ours = descendants(os.getpid(), "raylet")
    started = time.monotonic()
    fleet.end([0])
    fleet.close()
    cluster.close()
    assert time.monotonic() - started < 10
    print(cluster.folder, *(f"{process.pid}:{process.started}" for process in ours), flush=True)
    # Ray cannot end in order without its head.
    os._exit(0)
"""


def run_script(script: str, checkpoint: Checkpoint, folder: Path) -> tuple[str, str]:
    """Runs it in a process of its own, from another folder; returns what it printed on both streams."""
    path = folder / "script.py"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(path), str(checkpoint.path)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def check_nothing_left(line: str) -> None:
    temp_dir, *names = line.split()
    processes = [Process(*map(int, name.split(":"))) for name in names]
    assert processes
    assert not Path(temp_dir).exists()
    assert not [process for process in processes if is_running(process)]


@pytest.mark.long
def test_nothing_is_left_after_close_not_even_of_a_stopped_worker(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    before = set(os.listdir("/dev/shm"))
    out, err = run_script(SCRIPT, checkpoint, tmp_path)
    [line] = out.splitlines()
    check_nothing_left(line)
    # Another cluster may have come meanwhile: what is mapped is in use.
    assert not unmapped({Path("/dev/shm", name) for name in set(os.listdir("/dev/shm")) - before})
    # A start removes what another test's process, killed meanwhile, has left, and says so.
    assert [line for line in err.splitlines() if not line.endswith("killed left behind")] == []


@pytest.mark.long
def test_a_ray_without_its_head_is_left_in_time_and_ended(checkpoint: Checkpoint, tmp_path: Path) -> None:
    out, _ = run_script(HEADLESS, checkpoint, tmp_path)
    [line] = out.splitlines()
    check_nothing_left(line)
