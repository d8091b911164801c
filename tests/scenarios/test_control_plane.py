"""Scenarios C1 to C4 on a Ray cluster that is not the coordinator's own."""

import asyncio
import os
import signal
import time
from pathlib import Path
from subprocess import CompletedProcess

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from expertmesh import AsyncClient, ClientError, ControlClient
from tests.conftest import Measured
from tests.integration.processes import (
    DEMO_CHECKPOINT,
    PORTS,
    Server,
    run_command,
    wait_gone,
)
from tests.integration.ray_cluster import Cluster, cluster
from tests.integration.shared_cluster import Shared
from tests.scenarios.under_load import Load, Operator, until, until_true

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def head(shared_cluster: Shared) -> Cluster:
    return shared_cluster.cluster


def serving(head: Cluster, log: Path, *arguments: str) -> Server:
    options = ("--workers=2", "--replicas=2", f"--ray-address={head.address}")
    return Server(str(DEMO_CHECKPOINT), *options, *arguments, log=log, env=head.env)


@pytest.mark.chaos
async def test_c1_a_new_coordinator_uses_the_workers_that_run(
    head: Cluster, tmp_path: Path, measured: Measured
) -> None:
    with serving(head, tmp_path / "first") as first:
        load = await learned(first)
        with ControlClient(first.address_of("control")) as control:
            before = {worker.rank: worker.pid for worker in control.topology()}
        async with load.running(num_tokens=8) as tasks:
            killed = time.perf_counter()
            first.kill_whole()
            histories = [await task for task in tasks]
            told = time.perf_counter() - killed
        load.check(histories, allowed=["UNAVAILABLE"])
        assert all(history.error is not None for history in histories)
        assert told <= load.bar(1.0)
    with serving(head, tmp_path / "second") as second:
        line = second.wait_ready()
        assert "has loaded" not in second.log
        with ControlClient(second.address_of("control")) as control:
            assert {worker.rank: worker.pid for worker in control.topology()} == before
        load.address = second.address
        load.check(await load.run())
        seconds = float(line.rpartition("startup_seconds=")[2])
    measured("C1", told_after_s=told, restart_s=seconds)
    assert not wait_gone(set(before.values()))


async def learned(server: Server) -> Load:
    """Once it is ready: what its streams say when nothing fails."""
    server.wait_ready()
    load = Load(server.address)
    await load.learn()
    return load


async def refused(head: Cluster, *arguments: str) -> "CompletedProcess[str]":
    """Another coordinator's start, with the same workers."""
    options = ("--workers=2", f"--ray-address={head.address}", *arguments)
    return await asyncio.to_thread(
        lambda: run_command("serve", *PORTS, str(DEMO_CHECKPOINT), *options, env=head.env)
    )


@pytest.mark.chaos
async def test_c3_a_second_coordinator_is_refused_until_it_takes_over(
    head: Cluster, tmp_path: Path, measured: Measured
) -> None:
    with serving(head, tmp_path / "first") as first:
        load = await learned(first)
        async with load.running(num_tokens=8) as tasks:
            refusals = [await refused(head), await refused(head, "--dtype=bfloat16")]
            histories = [await task for task in tasks]
        for result in refusals:
            assert result.returncode == 1
            assert "is in use by coordinator" in result.stderr
            assert "--take-over" in result.stderr
        load.check(histories)
        load.check(await load.run())
        assert "lost" not in first.log
        with serving(head, tmp_path / "second", "--take-over") as second:
            second.wait_ready()
            taken = time.perf_counter()
            assert await asyncio.to_thread(first.process.wait, 30) == 1
            seconds = time.perf_counter() - taken
            assert "has taken" in first.log
            load.address = second.address
            load.check(await load.run())
    measured("C3", older_stopped_after_s=seconds)


@pytest.mark.chaos
async def test_c4_sigterm_drains(head: Cluster, tmp_path: Path, measured: Measured) -> None:
    with serving(head, tmp_path / "log", "--withdrawal-grace=0.5") as server:
        load = await learned(server)
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def is_withdrawn() -> bool:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=""))
                return bool(answer.status != health_pb2.HealthCheckResponse.SERVING)

            async with load.running(num_tokens=8) as tasks:
                server.process.send_signal(signal.SIGTERM)
                withdrawn = await until_true(is_withdrawn, 10)
                histories = [await task for task in tasks]
        load.check(histories)
        assert all(history.error is None for history in histories)
        async with AsyncClient(server.address, timeout=5) as client:

            async def is_refused() -> bool:
                """Not yet within the grace, which may outlast the streams."""
                try:
                    await client.generate("late", max_tokens=1)
                except ClientError:
                    return True
                return False

            await until_true(is_refused, 10)
        assert await asyncio.to_thread(server.process.wait, 60) == 0
    measured("C4", not_serving_after_s=withdrawn)


@pytest.mark.chaos
async def test_c2_a_lost_head_ends_the_server_before_ray_does(tmp_path: Path, measured: Measured) -> None:
    with cluster(tmp_path / "token", num_cpus=4) as head, serving(head, tmp_path / "log") as server:
        load = await learned(server)
        with ControlClient(server.address_of("control")) as control:
            workers = {int(worker.pid) for worker in Operator(control).workers().values()}
        async with load.running(num_tokens=8) as tasks:
            killed = time.perf_counter()
            os.kill(head.gcs_pid, signal.SIGKILL)
            histories = [await task for task in tasks]
        load.check(histories)
        assert await asyncio.to_thread(server.process.wait, 50) == 1
        seconds = time.perf_counter() - killed
        assert "the head of the Ray cluster is gone" in server.log
        await until(lambda: "stopped" in server.log)
        measured("C2", ended_after_s=seconds)
    assert not wait_gone(workers)
