"""Scenarios A2 and A3: workers are lost whose experts nobody else holds."""

import asyncio
import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import Measured
from tests.integration.processes import wait_gone
from tests.scenarios.serving import serving
from tests.scenarios.under_load import until_true

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "on_loss",
    ["auto", pytest.param("reload", marks=pytest.mark.chaos), pytest.param("local", marks=pytest.mark.chaos)],
)
async def test_a2_lost_experts_are_loaded_elsewhere_within_the_step(
    tmp_path: Path, on_loss: str, measured: Measured
) -> None:
    arguments = ("--workers=2", f"--on-expert-loss={on_loss}")
    with serving(tmp_path / "log", *arguments) as (load, operator):
        await load.learn()
        victim = operator.pid(1)
        async with load.running(num_tokens=8) as tasks:
            os.kill(victim, signal.SIGKILL)
            histories = [await task for task in tasks]
        assert not wait_gone({victim})
        load.check(histories)
        added = load.added_gap(histories)
        assert added <= load.bar(3.0)
        await operator.until_replicated(2, 1)
        load.check(await load.run())
        measured(f"A2 {on_loss}", added_gap_s=added)


@pytest.mark.chaos
async def test_a2_requests_wait_and_health_says_so(tmp_path: Path, measured: Measured) -> None:
    with serving(tmp_path / "log", "--workers=2", "--on-expert-loss=wait") as (load, operator):
        await load.learn()
        async with grpc.aio.insecure_channel(load.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def is_serving(wanted: bool) -> bool:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=""))
                return (answer.status == SERVING) is wanted

            victim = operator.pid(1)
            async with load.running(num_tokens=8) as tasks:
                os.kill(victim, signal.SIGKILL)
                noticed = await until_true(lambda: is_serving(False), 10)
                histories = [await task for task in tasks]
            assert noticed <= load.bar(1.0)
            await until_true(lambda: is_serving(True), 30)
        load.check(histories)
        measured("A2 wait", added_gap_s=load.added_gap(histories), not_serving_after_s=noticed)


@pytest.mark.chaos
async def test_a2_without_hope_requests_end_unavailable(tmp_path: Path, measured: Measured) -> None:
    arguments = ("--workers=2", "--on-expert-loss=replica")
    with serving(tmp_path / "log", *arguments) as (load, operator):
        await load.learn()
        async with load.running(num_tokens=8) as tasks:
            started = time.perf_counter()
            os.kill(operator.pid(1), signal.SIGKILL)
            histories = [await task for task in tasks]
            seconds = time.perf_counter() - started
        load.check(histories, allowed=["UNAVAILABLE"])
        assert all(h.error is not None and h.error.reason == "EXPERT_WORKER_LOST" for h in histories)
        assert seconds <= 30
        await operator.until_replicated(2, 1)
        load.check(await load.run())
        measured("A2 replica", unavailable_after_s=seconds)


@pytest.mark.chaos
async def test_a3_two_of_three_at_once(tmp_path: Path, measured: Measured) -> None:
    with serving(tmp_path / "log", "--workers=3", "--replicas=2") as (load, operator):
        await load.learn()
        victims = {operator.pid(rank) for rank in (0, 2)}
        async with load.running(num_tokens=8) as tasks:
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            histories = [await task for task in tasks]
        assert not wait_gone(victims)
        load.check(histories)
        restored = await operator.until_replicated(3, 2)
        load.check(await load.run())
        await asyncio.to_thread(operator.control.load)
        measured("A3", added_gap_s=load.added_gap(histories), restored_s=restored)
