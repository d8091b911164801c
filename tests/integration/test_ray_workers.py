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
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import ray
import torch

from expert_workers.dispatch import PoolOptions
from expert_workers.members import Expected
from expert_workers.placement import Placement, place
from expert_workers.pool import ExpertPool
from expert_workers.processes import Process, is_running
from expert_workers.ray_cluster import RayCluster
from expert_workers.ray_workers import RayWorkers, actor_name
from expert_workers.transport import FailureReason, Transport
from expert_workers.worker import WorkerSpec
from moe_model.checkpoint import Checkpoint
from moe_model.config import ModelConfig
from moe_model.errors import ClusterError, ExpertsLostError, WorkerStartError
from moe_model.experts import LocalExperts
from moe_model.initialise import initialise_checkpoint
from moe_model.loading import load_local_experts
from tests.expert_workers.fakes import make_routing, make_rows
from tests.integration.processes import stop

CONFIG = ModelConfig(d_model=32, n_heads=2, n_layers=2, d_ff=64, n_experts=5, top_k=2, vocab_size=32)
X_TD, ROUTING = make_rows(9, CONFIG), make_routing(9, CONFIG.n_experts, 2)
CALL_TIMEOUT = 1.0
PAIR = place(CONFIG.n_layers, CONFIG.n_experts, 2)
TRIO = place(CONFIG.n_layers, CONFIG.n_experts, 3, 2)


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
    return load_local_experts(checkpoint, torch.float32, "cpu")


@contextmanager
def running(checkpoint: Checkpoint, placement: Placement) -> Iterator[RayWorkers]:
    path, sums = str(checkpoint.path), checkpoint.fingerprint
    specs = [
        WorkerSpec(rank, path, num_threads=1, fingerprint=sums, kernels="torch")
        for rank in range(placement.num_workers)
    ]
    keys = [placement.experts_of(rank) for rank in range(placement.num_workers)]
    workers = RayWorkers.start(specs, keys, namespace=f"test-{placement.num_workers}")
    try:
        yield workers
    finally:
        workers.close()


@pytest.fixture(scope="module")
def pair(cluster: RayCluster, checkpoint: Checkpoint) -> Iterator[RayWorkers]:
    """Two workers that hold every expert once. A test that breaks one waits until it is back."""
    with running(checkpoint, PAIR) as workers:
        yield workers


@pytest.fixture(scope="module")
def trio(cluster: RayCluster, checkpoint: Checkpoint) -> Iterator[RayWorkers]:
    """Three workers that hold every expert twice. A test that breaks one waits until it is back."""
    with running(checkpoint, TRIO) as workers:
        yield workers


TRANSPORTS: dict[str, Callable[[RayWorkers], Transport]] = {
    "unix": RayWorkers.stream_transport,
    "tcp": partial(RayWorkers.stream_transport, use_unix=False),
    "ray": RayWorkers.call_transport,
}
Connected = Callable[[Placement, RayWorkers], AbstractContextManager[ExpertPool]]


@pytest.fixture(params=TRANSPORTS)
def connected(request: pytest.FixtureRequest) -> Connected:
    make = TRANSPORTS[request.param]

    @contextmanager
    def connect(placement: Placement, workers: RayWorkers) -> Iterator[ExpertPool]:
        options = PoolOptions(call_timeout=CALL_TIMEOUT, retry_interval=0.1)
        pool = ExpertPool.connect(placement, make(workers), options, Expected("float32"))
        yield pool
        pool.close()

    return connect


def check_equal(pool: ExpertPool, local: LocalExperts, checkpoint: Checkpoint, copies: int) -> None:
    for num_tokens in (1, 9, 64):
        x_TD, routing = make_rows(num_tokens, CONFIG), make_routing(num_tokens, CONFIG.n_experts, 2)
        for layer in range(CONFIG.n_layers):
            expected = local.forward(layer, x_TD, routing)
            assert torch.equal(pool.forward(layer, x_TD, routing), expected)
    sizes = [tensor.nbytes for tensor in checkpoint.read_expert(0, 0).values()]
    held = sum(record.num_bytes for record in pool.topology())
    assert held == copies * CONFIG.n_layers * CONFIG.n_experts * sum(sizes)


def test_two_workers_equal_local_experts(
    connected: Connected, pair: RayWorkers, local: LocalExperts, checkpoint: Checkpoint
) -> None:
    with connected(PAIR, pair) as pool:
        check_equal(pool, local, checkpoint, copies=1)


def test_three_workers_with_replicas_equal_local_experts(
    connected: Connected, trio: RayWorkers, local: LocalExperts, checkpoint: Checkpoint
) -> None:
    with connected(TRIO, trio) as pool:
        check_equal(pool, local, checkpoint, copies=2)


def test_rows_too_many_for_an_inline_message_come_back_right(
    connected: Connected, pair: RayWorkers, local: LocalExperts
) -> None:
    x_TD, routing = make_rows(4000, CONFIG), make_routing(4000, CONFIG.n_experts, 2)
    with connected(PAIR, pair) as pool:
        assert torch.equal(pool.forward(0, x_TD, routing), local.forward(0, x_TD, routing))


def test_a_replica_answers_for_a_killed_worker_which_ray_starts_again(
    connected: Connected, trio: RayWorkers, local: LocalExperts
) -> None:
    expected = local.forward(1, X_TD, ROUTING)
    with connected(TRIO, trio) as pool:
        pid = pool.topology()[1].pid
        os.kill(pid, signal.SIGKILL)
        started = time.monotonic()
        assert torch.equal(pool.forward(1, X_TD, ROUTING), expected)
        assert time.monotonic() - started < CALL_TIMEOUT + 0.5
        assert pool.lost == {1}
        assert pool.revive(time.monotonic() + 60) == {1}
        assert pool.topology()[1].pid != pid
        assert torch.equal(pool.forward(1, X_TD, ROUTING), expected)


def test_without_a_replica_the_loss_is_told_in_time_and_mended_by_the_restart(
    connected: Connected, pair: RayWorkers, local: LocalExperts
) -> None:
    with connected(PAIR, pair) as pool:
        os.kill(pool.topology()[1].pid, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(ExpertsLostError) as raised:
            pool.forward(1, X_TD, ROUTING)
        assert time.monotonic() - started < CALL_TIMEOUT + 0.5
        assert raised.value.ranks == (1,)
        assert pool.revive(time.monotonic() + 60) == {1}
        assert torch.equal(pool.forward(1, X_TD, ROUTING), local.forward(1, X_TD, ROUTING))


def test_a_stopped_worker_costs_one_deadline_once(
    connected: Connected, trio: RayWorkers, local: LocalExperts
) -> None:
    expected = local.forward(1, X_TD, ROUTING)
    with connected(TRIO, trio) as pool:
        pid = pool.topology()[2].pid
        stop(pid)
        started = time.monotonic()
        assert torch.equal(pool.forward(1, X_TD, ROUTING), expected)
        assert CALL_TIMEOUT <= time.monotonic() - started < CALL_TIMEOUT + 0.5
        assert pool.stats().workers[2].failures == {FailureReason.LATE: 1}
        started = time.monotonic()
        while pool.stats().dispatches < 30:
            assert torch.equal(pool.forward(1, X_TD, ROUTING), expected)
        assert time.monotonic() - started < CALL_TIMEOUT
        os.kill(pid, signal.SIGKILL)
        assert pool.revive(time.monotonic() + 60) == {2}
        assert torch.equal(pool.forward(1, X_TD, ROUTING), expected)


def test_a_worker_that_cannot_load_is_named_with_its_file_and_nothing_is_left(
    cluster: RayCluster, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    initialise_checkpoint(path, CONFIG)
    file = path / "experts" / "layer_0001" / "expert_0003.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    specs = [WorkerSpec(0, str(path)), WorkerSpec(1, str(path))]
    started = time.monotonic()
    with pytest.raises(WorkerStartError, match=r"^worker 1: [^\n]*layer_0001/expert_0003.safetensors[^\n]*$"):
        RayWorkers.start(specs, [((0, 0),), ((1, 3),)], namespace="broken")
    assert time.monotonic() - started < 10
    with pytest.raises(ClusterError, match="no Ray actor 'expert-worker-0' in namespace 'broken'"):
        RayWorkers.attach([0, 1], namespace="broken")


def test_a_worker_that_is_not_ready_in_time_is_named(cluster: RayCluster, checkpoint: Checkpoint) -> None:
    spec = WorkerSpec(4, str(checkpoint.path))
    with pytest.raises(WorkerStartError, match=r"worker 4: not ready within 0 s"):
        RayWorkers.start([spec], [((0, 0),)], namespace="late", timeout=0.0)


def test_a_taken_name_is_told_and_can_be_replaced(cluster: RayCluster, checkpoint: Checkpoint) -> None:
    spec = WorkerSpec(0, str(checkpoint.path))
    first = RayWorkers.start([spec], [((0, 0),)], namespace="taken")
    with pytest.raises(ClusterError, match="'expert-worker-0' exists already in namespace 'taken'"):
        RayWorkers.start([spec], [((0, 0),)], namespace="taken")
    RayWorkers.attach([0], namespace="taken")
    second = RayWorkers.start([spec], [((0, 0),)], namespace="taken", replace=True)
    second.close()
    first.close()
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(actor_name(0), namespace="taken")


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
def test_something_else_than_ray_is_told_within_five_seconds(
    server: Callable[[socket.socket], None], message: str
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        thread = threading.Thread(target=server, args=(listener,))
        thread.start()
        started = time.monotonic()
        with pytest.raises(ClusterError, match=message):
            RayCluster.connect(f"127.0.0.1:{listener.getsockname()[1]}")
        assert time.monotonic() - started < 5
        thread.join()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "no-such-host.invalid:6379", "ray", "ray://127.0.0.1:1", ":", "h:x"]
)
def test_an_address_that_cannot_be_used_is_told_within_five_seconds(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"^Ray [^\n]*$"):
        RayCluster.connect(address)
    assert time.monotonic() - started < 5


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from expert_workers.processes import descendants
from expert_workers.ray_cluster import RayCluster
from expert_workers.ray_workers import RayWorkers
from expert_workers.transport import Failure
from expert_workers.worker import WorkerSpec

received = []

def mine(number, frame):
    received.append(number)

def describe(transport, rank):
    [info] = transport.gather([transport.describe(rank)], time.monotonic() + 30)
    return info

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, mine)
    cluster = RayCluster.start_local(object_store_bytes=80 << 20)
    specs = [WorkerSpec(rank, sys.argv[1]) for rank in range(2)]
    workers = RayWorkers.start(specs, [((0, 0),), ((0, 1),)], namespace="script")
    transport = workers.stream_transport()
    pids = [describe(transport, rank).pid for rank in range(2)]
    assert os.getpriority(os.PRIO_PROCESS, pids[0]) == os.getpriority(os.PRIO_PROCESS, 0)
    os.killpg(0, signal.SIGTERM)
    assert [describe(transport, rank).pid for rank in range(2)] == pids
    assert received == [signal.SIGTERM]
    os.kill(pids[0], signal.SIGKILL)
    while isinstance(describe(transport, 0), Failure):
        pass
    os.kill(pids[1], signal.SIGSTOP)
    ours = descendants(os.getpid(), "raylet") | descendants(os.getpid(), "gcs_server")
    assert pids[1] in {process.pid for process in ours}
    workers.close()
    cluster.close()
    print(cluster._temp_dir, *(f"{process.pid}:{process.started}" for process in ours))
"""


HEADLESS = """
import os, signal, sys, time
from expert_workers.processes import descendants, kill_and_wait, wait_gone
from expert_workers.ray_cluster import RayCluster
from expert_workers.ray_workers import RayWorkers
from expert_workers.worker import WorkerSpec

if __name__ == "__main__":
    cluster = RayCluster.start_local(object_store_bytes=80 << 20)
    workers = RayWorkers.start([WorkerSpec(0, sys.argv[1])], [((0, 0),)], namespace="headless")
    assert not kill_and_wait(descendants(os.getpid(), "gcs_server"), 10.0)
    ours = descendants(os.getpid(), "raylet")
    started = time.monotonic()
    workers.close()
    cluster.close()
    assert time.monotonic() - started < 10
    print(cluster._temp_dir, *(f"{process.pid}:{process.started}" for process in ours), flush=True)
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


def test_nothing_is_left_after_close_not_even_of_a_stopped_worker(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    before = set(os.listdir("/dev/shm"))
    out, err = run_script(SCRIPT, checkpoint, tmp_path)
    [line] = out.splitlines()
    check_nothing_left(line)
    assert set(os.listdir("/dev/shm")) <= before
    assert not err


def test_a_ray_without_its_head_is_left_in_time_and_ended(checkpoint: Checkpoint, tmp_path: Path) -> None:
    out, _ = run_script(HEADLESS, checkpoint, tmp_path)
    [line] = out.splitlines()
    check_nothing_left(line)
