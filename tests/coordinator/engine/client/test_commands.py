"""Operators' commands, wherever the engine is: typed results, and errors that say which field is wrong."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.engine.client.base import EngineClient
from coordinator.engine.client.handlers import Operated
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.commands import (
    CheckIntegrity,
    Done,
    ListExperts,
    RemoveExpert,
    ReplaceExpert,
    ScaleWorkers,
)
from coordinator.engine.messages.errors import ExchangeError, IntegrityError, NoCommandError
from coordinator.engine.messages.output import FinishReason
from coordinator.engine.messages.stats import WorkersStatus
from coordinator.server.build_engine import build_engine, expert_exchange
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import HaltedError, NoWorkersError
from moe_model.kernels.choice import choose_kernels
from moe_model.loading import load_local_experts
from tests.coordinator.engine.client.clients import CLIENTS
from tests.coordinator.engine.fakes import CountingRunner, engine_over
from tests.coordinator.exchanges import CONFIG, engine_config, module_of
from tests.models import make_request, write_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("commands") / "source", CONFIG)


@pytest.fixture(params=list(CLIENTS))
async def engine(request: pytest.FixtureRequest, source: Path) -> AsyncIterator[EngineClient]:
    """A real one, whose experts can be exchanged."""
    checkpoint = Checkpoint.open(source)
    config = engine_config("torch", checkpoint.dtype)
    experts = load_local_experts(checkpoint, checkpoint.dtype, "cpu", choose_kernels("torch", "cpu", 1))
    core = build_engine(checkpoint, config, experts)
    thread = EngineThread(core)
    exchange = expert_exchange(checkpoint, config, experts, core, thread.switch)
    make = CLIENTS[request.param]
    client = await make(thread, Operated.of(exchange, experts))
    yield client
    assert await client.close()


async def test_an_expert_is_replaced_and_removed(engine: EngineClient, source: Path) -> None:
    file = module_of(source, 0, 1)
    changed = await asyncio.to_thread(engine.call, ReplaceExpert(1, 2, file))
    module = changed.expert.module
    assert (module.layer, module.expert, module.version) == (1, 2, 1)
    assert module.file is not None
    assert module.file.path == file
    await asyncio.to_thread(engine.call, RemoveExpert(0, 3))
    listed = await asyncio.to_thread(engine.call, ListExperts())
    assert module in [view.module for view in listed.experts]
    status = engine.model()
    assert (status.version, status.exchanged, status.experts[0]) == (2, (module,), (0, 1, 2))
    assert status.changes == {"replace": 1, "add": 0, "remove": 1}
    outputs = [output async for output in engine.stream(make_request("r", (1, 2), 3))]
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert await asyncio.to_thread(engine.call, CheckIntegrity()) == Done()


async def test_an_engine_without_workers_says_so(engine: EngineClient) -> None:
    assert engine.workers() == WorkersStatus()
    with pytest.raises(NoWorkersError):
        await asyncio.to_thread(engine.call, ScaleWorkers(2, 1.0))


async def test_a_refusal_names_the_field(engine: EngineClient, source: Path) -> None:
    before = engine.model()
    with pytest.raises(ExchangeError) as refused:
        await asyncio.to_thread(engine.call, ReplaceExpert(1, 2, str(source / "none")))
    assert refused.value.field == "path"
    with pytest.raises(ExchangeError) as refused:
        await asyncio.to_thread(engine.call, RemoveExpert(9, 0))
    assert refused.value.field == "layer"
    assert engine.model() == before


@pytest.mark.parametrize("client", CLIENTS)
async def test_an_engine_says_which_commands_it_lacks(client: str) -> None:
    engine = await CLIENTS[client](EngineThread(engine_over(CountingRunner())))
    with pytest.raises(NoCommandError, match="ListExperts"):
        await asyncio.to_thread(engine.call, ListExperts())
    assert await engine.close()
    with pytest.raises(HaltedError):
        await asyncio.to_thread(engine.call, CheckIntegrity())


@pytest.mark.parametrize("client", CLIENTS)
async def test_lost_blocks_are_an_error(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(engine: Engine) -> None:
        raise AssertionError("a block is lost")

    monkeypatch.setattr(Engine, "check_integrity", broken)
    engine = await CLIENTS[client](EngineThread(engine_over(CountingRunner())))
    with pytest.raises(IntegrityError, match="a block is lost"):
        await asyncio.to_thread(engine.call, CheckIntegrity())
    assert await engine.close()
