"""The engine's side of a server: weights, experts, workers, the engine's thread over them. Knows no front.

Part of the composition root: the server of one process opens it beside its fronts, an engine process alone.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from coordinator.config.serve import ServeConfig
from coordinator.engine.client.handlers import Operated
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.core.observer import EngineObservers
from coordinator.engine.core.prepared import Preparer
from coordinator.engine.messages.request import ContextOverflow, Request, StopRules
from coordinator.engine.recording.recorder import RoutingRecorder
from coordinator.engine.telemetry.counts import EngineCounts
from coordinator.engine.telemetry.traces import StepTraces
from coordinator.server.build_engine import build_engine, expert_exchange
from coordinator.server.experts import open_experts
from coordinator.server.phases import UNTOLD, Phases
from coordinator.server.routing import forcing_of, recording
from coordinator.server.shared_part import loading_shared
from expert_workers.cluster.place import OwnRay
from expert_workers.observers import ExpertObserver
from moe_model.checkpoint.reader import Checkpoint
from moe_model.halt import Halt
from moe_model.sampling.params import SamplingParams

_FOREVER = 1e9


@dataclass(frozen=True, slots=True)
class EngineSide:
    """An engine's thread, which its owner starts and closes, and what operators may ask of it."""

    thread: EngineThread
    operated: Operated = field(repr=False)
    counts: EngineCounts = field(repr=False)
    _halt: Halt
    _warm: "Future[None]"
    _recorder: RoutingRecorder | None = None

    def warm_up(self) -> None:
        """Returns when one token has come through everything, so that READY means it works: the first thing
        that the thread does when it is started, before any request. Raises the request's error; HaltedError
        soon after the start was halted."""
        self._halt.result(self._warm, _FOREVER)
        if self._recorder is not None:
            self._recorder.open()
        self.counts.open([worker.rank for worker in self.operated.workers().workers])


@contextmanager
def open_engine_side(
    checkpoint: Checkpoint,
    config: ServeConfig,
    preparer: Preparer,
    over: Callable[[str], None] | None = None,
    phases: Phases = UNTOLD,
    halt: Halt | None = None,
    own_ray: OwnRay | None = None,
) -> Iterator[EngineSide]:
    """What it starts ends with the block, but for the engine's thread. `over` is told, on another thread and
    once, why the workers cannot be looked after any more; `own_ray` as open_experts has it. Raises
    ExpertMeshError, of them HaltedError soon after `halt` was set."""
    halt, counts, traces = halt or Halt(), EngineCounts(), StepTraces()
    told: Sequence[ExpertObserver] = (counts, traces)
    opened = open_experts(checkpoint, config.engine, config.workers, told, over, phases, halt, own_ray)
    forcing = forcing_of(config.routing.force, checkpoint.config)
    recorded = recording(checkpoint, config.routing, counts.recorded)
    with recorded as recorder, loading_shared(checkpoint, config.engine, halt) as part, opened as experts:
        halt.check()
        phases("engine")
        steps = EngineObservers([counts, traces])
        core = build_engine(
            *(checkpoint, config.engine, experts, steps, preparer, phases.progress, part),
            recorder=recorder,
            forcing=forcing,
        )
        thread = EngineThread(core)
        exchange = expert_exchange(checkpoint, config.engine, experts, core, thread.switch)
        warm = thread.call(lambda engine: _warm_up(engine, halt))
        operated = Operated.of(exchange, experts, counts.snapshot, traces)
        yield EngineSide(thread, operated, counts, halt, warm, recorder)


def _warm_up(engine: Engine, halt: Halt) -> None:
    rules = StopRules(max_tokens=1, context_overflow=ContextOverflow.SLIDE)
    engine.submit(Request("warm-up", (0,), SamplingParams(temperature=0), rules))
    while engine.has_work:
        halt.check()
        for output in engine.step():
            if output.failure is not None:
                raise output.failure.error()
