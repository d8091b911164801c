"""Operators see and change an engine's workers through its client alone."""

import asyncio
from pathlib import Path

import pytest

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.client.handlers import Operated
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.commands import ScaleWorkers
from coordinator.engine.messages.output import FinishReason
from coordinator.server.build_engine import build_engine, expert_exchange
from coordinator.server.experts import open_experts
from expert_workers.status import WorkerState
from moe_model.checkpoint.reader import Checkpoint
from moe_model.versions.expert_versions import ExpertModule
from tests.coordinator.engine.client.clients import CLIENTS
from tests.models import make_request

CONFIG = EngineConfig(kernels="torch", num_threads=1, block_size=4, kv_cache_bytes=1 << 20)
MISSING = (ExpertModule(1, 0, 0),)
WORKERS = WorkersConfig(num_workers=2, replicas=2, transport="in-process")


@pytest.mark.parametrize("client", CLIENTS)
async def test_workers_are_seen_and_scaled(
    client: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    with open_experts(checkpoint, CONFIG, WORKERS) as experts:
        core = build_engine(checkpoint, CONFIG, experts)
        thread = EngineThread(core)
        monkeypatch.setattr(experts, "missing_experts", lambda: MISSING)
        exchange = expert_exchange(checkpoint, CONFIG, experts, core, thread.switch)
        engine = await CLIENTS[client](thread, Operated.of(exchange, experts))
        before = await engine.current_workers()
        assert before == engine.workers()
        assert before.workers == tuple(experts.topology())
        assert before.num_replicas == 2
        assert engine.missing_experts() == before.missing == MISSING
        monkeypatch.setattr(experts, "missing_experts", lambda: ())
        assert (await engine.current_workers()).missing == ()
        scaled = await asyncio.to_thread(engine.call, ScaleWorkers(3, 60.0))
        assert (scaled.num_before, scaled.num_workers) == (2, 3)
        assert [worker.state for worker in engine.workers().workers] == [WorkerState.READY] * 3
        outputs = [output async for output in engine.stream(make_request("r", (1, 2), 3))]
        assert outputs[-1].finish_reason is FinishReason.LENGTH
        assert await engine.close()
