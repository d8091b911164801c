"""Streams to real Ray actors: deaths in the middle of a load, several coordinators, nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expert_workers.dispatch import PoolOptions
from expert_workers.placement import place
from expert_workers.pool import ExpertPool
from expert_workers.ray_cluster import RayCluster
from expert_workers.ray_workers import RayWorkers
from expert_workers.worker import WorkerSpec
from moe_model.checkpoint import Checkpoint
from moe_model.config import ModelConfig
from moe_model.experts import LocalExperts
from moe_model.initialise import initialise_checkpoint
from moe_model.loading import load_local_experts
from tests.expert_workers.fakes import make_routing, make_rows

CONFIG = ModelConfig(d_model=32, n_heads=2, n_layers=2, d_ff=64, n_experts=5, top_k=2, vocab_size=32)
PLACEMENT = place(CONFIG.n_layers, CONFIG.n_experts, 3, 2)
NAMESPACE = "streams"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster.start_local(num_cpus=2, object_store_bytes=80 << 20)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("streams") / "checkpoint"
    initialise_checkpoint(path, CONFIG)
    return Checkpoint.open(path)


@pytest.fixture(scope="module")
def local(checkpoint: Checkpoint) -> LocalExperts:
    return load_local_experts(checkpoint, torch.float32, "cpu")


@pytest.fixture(scope="module")
def workers(cluster: RayCluster, checkpoint: Checkpoint) -> Iterator[RayWorkers]:
    specs = [
        WorkerSpec(rank, str(checkpoint.path), PLACEMENT.experts_of(rank), num_threads=1, kernels="torch")
        for rank in range(PLACEMENT.num_workers)
    ]
    workers = RayWorkers.start(specs, namespace=NAMESPACE)
    yield workers
    workers.close()


def connect(workers: RayWorkers, *, use_unix: bool = True) -> ExpertPool:
    options = PoolOptions(call_timeout=5.0, retry_interval=0.1)
    return ExpertPool.connect(PLACEMENT, workers.stream_transport(use_unix=use_unix), options)


def load(pool: ExpertPool, local: LocalExperts, until: threading.Event) -> int:
    """Four dispatches in flight at any time, each result checked, until it is told to end."""
    num_tokens, num_done = [1, 300, 7, 2000], 0
    inputs = [(make_rows(n, CONFIG), make_routing(n, CONFIG.n_experts, 2, n)) for n in num_tokens]
    expected = [local.forward(1, x_TD, routing) for x_TD, routing in inputs]
    while not until.is_set():
        begun = [pool.begin(1, x_TD, routing) for x_TD, routing in inputs]
        for dispatch, y_TD in zip(begun, expected, strict=True):
            assert torch.equal(pool.finish(dispatch), y_TD)
        num_done += len(begun)
    return num_done


@pytest.mark.parametrize("use_unix", [True, False], ids=["unix", "tcp"])
def test_a_worker_killed_under_load_costs_no_result(
    workers: RayWorkers, local: LocalExperts, use_unix: bool
) -> None:
    pool, done = connect(workers, use_unix=use_unix), threading.Event()
    pid = pool.topology()[1].pid
    kill = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    end = threading.Timer(1.0, done.set)
    kill.start()
    end.start()
    assert load(pool, local, done) > 0
    kill.join()
    end.join()
    assert sum(pool.stats().workers[1].failures.values()) == 1
    assert not pool.lost or pool.revive(time.monotonic() + 60) == {1}
    assert pool.topology()[1].pid != pid
    assert pool.lost == frozenset()
    pool.close()


OTHER = """
import sys
import torch
torch.set_num_threads(1)
from expert_workers.ray_cluster import RayCluster
from expert_workers.ray_workers import RayWorkers
from moe_model.checkpoint import Checkpoint
from moe_model.loading import load_local_experts
from tests.integration.test_stream_workers import NAMESPACE, PLACEMENT, connect, load
from pathlib import Path
import threading

if __name__ == "__main__":
    cluster = RayCluster.connect(sys.argv[1])
    pool = connect(RayWorkers.attach(range(PLACEMENT.num_workers), namespace=NAMESPACE))
    local = load_local_experts(Checkpoint.open(Path(sys.argv[2])), torch.float32, "cpu")
    print("begins", flush=True)
    done = threading.Event()
    threading.Timer(1.0, done.set).start()
    print(load(pool, local, done), flush=True)
    pool.close()
    cluster.close()
"""


def test_another_coordinator_uses_the_same_workers_at_the_same_time(
    cluster: RayCluster, workers: RayWorkers, checkpoint: Checkpoint, local: LocalExperts, tmp_path: Path
) -> None:
    script = tmp_path / "other.py"
    script.write_text(OTHER, encoding="utf-8")
    pool, done = connect(workers), threading.Event()
    with subprocess.Popen(
        [sys.executable, str(script), cluster.address, str(checkpoint.path)],
        env={**os.environ, **cluster.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "begins\n"

        def watch() -> None:
            other.wait(60)
            done.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert load(pool, local, done) > 0
        watcher.join()
        assert int(other.stdout.readline()) > 0
        assert other.returncode == 0
    assert pool.lost == frozenset()
    pool.close()


def test_no_thread_and_no_file_is_left_after_close(workers: RayWorkers) -> None:
    connect(workers).close()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        connect(workers).close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
