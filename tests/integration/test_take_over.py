"""Two coordinators on one Ray cluster: what the older one's callers hear when the other takes over."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from expertmesh import ControlClient
from expertmesh.v1 import generation_pb2_grpc
from tests.integration.processes import DEMO_CHECKPOINT, Server
from tests.integration.ray_cluster import Cluster
from tests.integration.shared_cluster import Shared
from tests.integration.test_server_life import PATIENCE, endless_message, failure_of, until_running

# What nobody may wait for: neither lost experts nor the drain, each longer than the test may take.
LONG = ["--expert-wait-timeout=600", "--drain-timeout=600", "--call-timeout=60"]
WORKERS = ["--workers=2", "--on-expert-loss=wait", "--max-batch=2"]
NUM_STREAMS, NUM_QUEUED = 2, 2


pytestmark = pytest.mark.long


@pytest.fixture
def head(shared_cluster: Shared) -> Cluster:
    return shared_cluster.cluster


def serving(head: Cluster, log: Path, *arguments: str) -> Server:
    options = [*WORKERS, *LONG, f"--ray-address={head.address}", *arguments]
    return Server(str(DEMO_CHECKPOINT), *options, log=log, env=head.env)


def check_told(ended: "Future[list[Any]]") -> None:
    failed = failure_of(ended)
    assert (failed.code, failed.reason) == ("UNAVAILABLE", "EXPERT_WORKER_LOST")
    assert "another coordinator has taken over" in failed.message
    assert failed.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0


def test_who_is_taken_over_from_ends_its_requests_at_once(head: Cluster, tmp_path: Path) -> None:
    """Those that run and those that are queued; then it stops by itself."""
    with (
        serving(head, tmp_path / "first") as first,
        ThreadPoolExecutor() as threads,
    ):
        first.wait_ready()
        with (
            grpc.insecure_channel(first.address) as channel,
            ControlClient(first.address_of("control")) as control,
        ):
            stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
            streams = [stub.GenerateStream(endless_message()) for _ in range(NUM_STREAMS)]
            for stream in streams:
                next(stream), next(stream)
            streams += [stub.GenerateStream(endless_message()) for _ in range(NUM_QUEUED)]
            ends = [threads.submit(list, stream) for stream in streams]
            until_running(control, NUM_STREAMS, num_waiting=NUM_QUEUED)
            with serving(head, tmp_path / "second", "--take-over") as second:
                second.wait_ready()
                started = time.monotonic()
                for end in ends:
                    check_told(end)
                assert first.process.wait(PATIENCE) == 1
                assert time.monotonic() - started < PATIENCE, "neither experts nor the drain were waited for"
                assert second.process.poll() is None
