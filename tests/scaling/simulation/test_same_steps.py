"""The simulation makes the very steps that the engine makes: it runs the same scheduler."""

from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from simpy import Event

from coordinator.config.engine import EngineConfig
from coordinator.engine.cache.cache_sizes import block_bytes
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.step import Step
from coordinator.engine.messages.request import Request, StopRules
from moe_model.families import family_of
from moe_model.sampling.params import SamplingParams
from scaling.simulation.engine import SimEngine
from scaling.simulation.setting import Ask, Demand
from scaling.simulation.world import World
from tests.models import TINY, random_model, tiny_engine
from tests.scaling.simulation.settings import Plain, setting

CONFIG = replace(TINY, max_seq_len=32)
Chunks = list[tuple[int, int, int, bool]]


class Recorded:
    """Steps of a scheduler, as (sequence, start, tokens, completes)."""

    def __init__(self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[Chunks] = []
        schedule = scheduler.schedule

        def recording() -> Step:
            step = schedule()
            self.steps.append([(c.sequence.key, c.start, c.num_tokens, c.completes) for c in step.chunks])
            return step

        monkeypatch.setattr(scheduler, "schedule", recording)


def asked(lengths: Iterable[tuple[int, int]]) -> list[Ask]:
    """Distinct prompts, of so many tokens with so many after them; the third begins as the first does."""
    found = []
    for number, (num_prompt, num_output) in enumerate(lengths):
        first = 0 if number == 2 else number
        prompt = tuple((7 * first + 3 * place) % CONFIG.vocab_size for place in range(num_prompt))
        found.append(Ask(0.0, num_prompt, num_output, prompt))
    return found


def all_steps(engine: SimEngine) -> Generator[Event, Any, None]:
    while engine.num_sequences:
        yield from engine.step()


@pytest.mark.parametrize("num_blocks", [64, 8])
def test_steps_are_those_of_the_engine(num_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunked prompts, a shared prefix, sequences that wait, and with few blocks preemptions."""
    asks = asked([(11, 9), (5, 6), (13, 3), (3, 12), (9, 5), (6, 1)])
    engine = tiny_engine(random_model(CONFIG), num_blocks, 4, 3, 8)
    real = Recorded(engine._scheduler, monkeypatch)
    for number, ask in enumerate(asks):
        rules = StopRules(max_tokens=ask.num_output, ignore_eos=True)
        engine.submit(Request(str(number), ask.prompt, SamplingParams(temperature=0), rules))
    while engine.has_work:
        engine.step()

    block = block_bytes(family_of(CONFIG).cache_spec(CONFIG), 4, torch.float32)
    options = EngineConfig(
        max_num_seqs=3,
        max_step_tokens=8,
        block_size=4,
        kv_cache_bytes=num_blocks * block,
        max_gap_ms=None,
        micro_batches=1,
    )
    world = World(setting(Plain(of_step=1e-3), config=CONFIG, engine=options), Demand(asks))
    scheduler = world.engines[0].scheduler
    found = Recorded(scheduler, monkeypatch)
    for number, ask in enumerate(asks):
        world.place(number, ask)
    world.env.run(until=world.env.process(all_steps(world.engines[0])))
    assert found.steps == real.steps
    assert scheduler.num_preemptions == engine.stats().num_preemptions
    assert scheduler.prefix_cache.num_hits == engine.stats().prefix_hits > 0
    assert bool(scheduler.num_preemptions) == (num_blocks == 8)
