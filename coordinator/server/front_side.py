"""The fronts' side of a server: ports, admission, what is known of the model, and who is told of requests.
Knows of an engine only that it is an EngineClient.

Part of the composition root: the server of one process opens it beside its engine, a front process alone.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from uuid import uuid4

from coordinator.api.requests.gate import Backend
from coordinator.api.shared.operations import Operations, ServerFacts
from coordinator.api.shared.readiness import Sources
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.telemetry.metrics import MetricSources
from coordinator.config.serve import ServeConfig
from coordinator.engine.client.base import EngineClient
from coordinator.engine.messages.model_facts import ModelFacts
from coordinator.metrics.ledger import Ledger
from coordinator.server.fronts import Fronts
from coordinator.server.model_texts import ModelTexts
from coordinator.server.open_model import open_model
from coordinator.server.watchers import Watchers


@dataclass(slots=True)
class FrontSide:
    """Ports that answer: it has to be told of a model, and can `open` when there is an engine of it."""

    fronts: Fronts
    watchers: Watchers
    _config: ServeConfig
    _instance_id: str
    _stack: AsyncExitStack = field(repr=False)
    _answers_early: bool

    async def read(self, facts: ModelFacts) -> "FrontModel":
        """What texts need, and what fronts know of the model; its processes end with the block. Raises
        CheckpointError, ConfigError, TokenizerError."""
        texts = await asyncio.to_thread(ModelTexts.open, facts)
        self._stack.callback(texts.close)
        return FrontModel(await open_model(facts, self._config.model, texts, self._stack), texts)

    async def open(self, model: ServedModel, engine: EngineClient) -> ServedModel:
        """Lets callers in; the model as it is with this engine."""
        model = replace(
            model,
            current_experts=lambda: engine.model().experts,
            kv_capacity_tokens=engine.stats().kv_capacity_tokens,
        )
        workers = self._config.workers
        sources = MetricSources(
            *(engine.stats, engine.model, engine.workers, self._config.engine.block_size, engine.counts),
            certificates=self.fronts.certificates,
            replicas=workers.replicas if workers.has_workers else 0,
        )
        self.watchers.metrics.open(model.name, model.max_context, sources)
        if self.watchers.tracing is not None:
            engine.follow(self.watchers.tracing.told)
        self.serve(model, engine)
        if not self._answers_early:
            await self._stack.enter_async_context(self.fronts.serving())
        await self.fronts.open(Sources(engine.stats, engine.missing_experts))
        return model

    def serve(self, model: ServedModel, engine: EngineClient) -> None:
        """What callers and operators meet from now on: another engine may have a cache of another size."""
        operations = Operations(_facts(model, self._instance_id), engine)
        self.fronts.serve(Backend(model, engine), operations)


@dataclass(frozen=True, slots=True)
class FrontModel:
    """The model as fronts know it before there is an engine, and what an engine in this process shares."""

    served: ServedModel
    texts: ModelTexts


@asynccontextmanager
async def open_front_side(
    config: ServeConfig,
    ledger: Ledger | None = None,
    instance_id: str = "",
    *,
    has_held_ports: bool = False,
    answers_early: bool = True,
) -> AsyncIterator[FrontSide]:
    """The ports are taken, and answer health checks; every other call is refused as NOT_READY until `open`.
    `ledger`: what is counted together with other fronts of the server; `instance_id`: its name, by default
    a new one; `has_held_ports`: the launcher has made sure of them; without `answers_early` nothing is
    answered before `open`, for which callers then wait. Raises ConfigError."""
    ledger = ledger or Ledger()
    watchers = Watchers(config.observability, ledger)
    fronts = Fronts(config, watchers.metrics, watchers.requests, ledger, has_held_ports=has_held_ports)
    fronts.bind()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, watchers.close)
        if answers_early:
            await stack.enter_async_context(fronts.serving())
        yield FrontSide(fronts, watchers, config, instance_id or str(uuid4()), stack, answers_early)


def _facts(model: ServedModel, instance_id: str) -> ServerFacts:
    return ServerFacts(
        version=metadata.version("expertmesh"),
        instance_id=instance_id,
        models=(model.name, *model.aliases),
        kv_capacity_tokens=model.kv_capacity_tokens,
    )
