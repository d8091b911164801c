"""A whole server: all fronts around one engine, in the order in which they open and close.

The ports are taken first, so that a taken one shows before anything costly starts; loading runs on other
threads, so that health checks are answered and a signal is heard meanwhile.
"""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TypeVar
from uuid import uuid4

from coordinator.api.requests.gate import Backend
from coordinator.api.shared.operations import Operations, ServerFacts
from coordinator.api.shared.readiness import Sources
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.telemetry.metrics import MetricSources
from coordinator.config.serve import ServeConfig
from coordinator.engine.client.base import NO_LIMIT, EngineClient
from coordinator.engine.client.handlers import Operated
from coordinator.engine.client.in_process import InProcessEngine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.request import ContextOverflow, Request, StopRules
from coordinator.server.build_engine import build_engine, expert_exchange
from coordinator.server.experts import ServedExperts, open_experts
from coordinator.server.fronts import Fronts
from coordinator.server.model_texts import ModelTexts
from coordinator.server.open_checkpoint import open_checkpoint
from coordinator.server.open_model import open_model
from coordinator.server.phases import UNTOLD, Phases
from coordinator.server.watchers import Watchers
from moe_model.checkpoint.reader import Checkpoint
from moe_model.halt import Halt
from moe_model.sampling.params import SamplingParams

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that can serve. `failed` says why it must stop, if it must."""

    model: ServedModel
    fronts: Fronts
    engine: EngineClient
    startup_seconds: float
    failed: "asyncio.Future[str]"


@asynccontextmanager
async def open_server(
    config: ServeConfig, phases: Phases = UNTOLD, halt: Halt | None = None
) -> AsyncIterator[RunningServer]:
    """A whole server, ready; everything it started ends with the block. Raises ExpertMeshError, of them
    HaltedError soon after `halt` was set; it has not served then."""
    halt = halt or Halt()
    started = time.monotonic()
    watchers = Watchers(config.observability)
    fronts = Fronts(config, watchers.metrics, watchers.requests)
    fronts.bind()
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[str] = loop.create_future()

    def over(why: str) -> None:
        """On the supervisor's thread; once."""
        loop.call_soon_threadsafe(failed.set_result, why)

    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, watchers.close)
        await stack.enter_async_context(fronts.serving())
        phases("checkpoint")
        checkpoint = await asyncio.to_thread(open_checkpoint, config.checkpoint, phases, halt)
        halt.check()
        texts = await asyncio.to_thread(ModelTexts.open, checkpoint)
        stack.callback(texts.close)
        model = await open_model(checkpoint, config, texts, stack)
        opened = open_experts(checkpoint, config.engine, config.workers, watchers.pools, over, phases, halt)
        experts = await _entered(opened, stack)
        halt.check()
        phases("engine")
        engine = await _open_engine(checkpoint, config, experts, texts, watchers, phases)
        stack.push_async_callback(engine.close)
        phases("warm-up")
        await halt.unless_set(_warm_up(engine))
        model = replace(
            model,
            current_experts=lambda: engine.model().experts,
            kv_capacity_tokens=engine.stats().kv_capacity_tokens,
        )
        metric_sources = MetricSources(engine.stats, engine.model, engine.workers, config.engine.block_size)
        watchers.metrics.open(model.name, model.max_context, metric_sources)
        operations = Operations(_facts(config, model), engine)
        sources = Sources(engine.stats, engine.missing_experts)
        # What is there now stays: looking through all of it for cycles would only hold up every request.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        halt.check()
        await fronts.open(Backend(model, engine), operations, sources)
        yield RunningServer(model, fronts, engine, time.monotonic() - started, failed)


async def _entered(opened: AbstractContextManager[T], stack: AsyncExitStack) -> T:
    """Enters a block on another thread; it ends with the stack."""
    entered = await asyncio.to_thread(opened.__enter__)
    stack.push_async_callback(asyncio.to_thread, opened.__exit__, None, None, None)
    return entered


async def _open_engine(
    checkpoint: Checkpoint,
    config: ServeConfig,
    experts: ServedExperts,
    texts: ModelTexts,
    watchers: Watchers,
    phases: Phases,
) -> InProcessEngine:
    """An engine on a thread of its own. It builds constraints where the fronts have checked them."""
    core = await asyncio.to_thread(
        build_engine, checkpoint, config.engine, experts, watchers.engine, texts.preparer(), phases.progress
    )
    thread = EngineThread(core)
    exchange = expert_exchange(checkpoint, config.engine, experts, core, thread.switch)
    return InProcessEngine(thread, Operated.of(exchange, experts))


def _facts(config: ServeConfig, model: ServedModel) -> ServerFacts:
    return ServerFacts(
        version=metadata.version("expertmesh"),
        instance_id=str(uuid4()),
        models=(model.name, *model.aliases),
        kv_capacity_tokens=model.kv_capacity_tokens,
    )


async def _warm_up(engine: EngineClient) -> None:
    """One token through everything, so that READY means it works. Raises the request's error."""
    rules = StopRules(max_tokens=1, context_overflow=ContextOverflow.SLIDE)
    request = Request("warm-up", (0,), SamplingParams(temperature=0), rules)
    async for _ in engine.stream(request, NO_LIMIT):
        pass
