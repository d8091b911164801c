"""Decoding as it goes on: so many sequences with so long contexts, a few steps until their time is known.

The prompts are there at the beginning, computed in no time: what is asked is how quick streams are.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from msgspec import Struct
from simpy import Event

from scaling.simulation.engine import SimEngine
from scaling.simulation.outcome import split_ms
from scaling.simulation.setting import Ask, Demand, Setting
from scaling.simulation.split import Split, binds
from scaling.simulation.world import World

# The mean is known when its standard error is so small a share of it.
WELL_KNOWN = 0.01
LEAST_STEPS, MOST_STEPS = 3, 24


class Steady(Struct, frozen=True):
    """`batch`: sequences that there was room for in the cache. `error`: the standard error of the step's
    time, as a share of it."""

    batch: int
    tokens_per_s: float
    step_ms: float
    error: float
    num_steps: int
    micro_batches: int
    binds: str
    shares: dict[str, float]
    split_ms: dict[str, float]
    bytes_per_step: float


def steady(setting: Setting, batch: int, context: int) -> Steady:
    """With one part of each step in flight and with two where the setting leaves that open, the better one.
    Raises ConfigError where not even one sequence has room."""
    asked = setting.engine.micro_batches
    choices = [asked] if asked is not None else [1, 2] if setting.workers and batch >= 4 else [1]
    found = [_steady(setting, batch, context, num_parts) for num_parts in choices]
    return max(found, key=lambda each: each.tokens_per_s)


def _steady(setting: Setting, batch: int, context: int, num_parts: int) -> Steady:
    most = max(batch, setting.engine.max_num_seqs)
    engine = replace(
        setting.engine,
        micro_batches=num_parts,
        max_num_seqs=most,
        # Prompts are taken for computed as wholes, and none is looked for among the others'.
        max_step_tokens=most * (context + 1) + 1,
        max_gap_ms=None,
        prefix_caching=False,
    )
    asks = [Ask(None, context, MOST_STEPS + 8, (0,) * context)] * batch
    world = World(replace(setting, engine=engine), Demand(asks, batch))
    for each in world.engines:
        _fill(world, each, batch // len(world.engines) or 1)
    # Of several coordinators, all go on until the time of each is known: they share the workers.
    world.env.run(
        until=world.env.all_of([world.env.process(_steps(each, world.engines)) for each in world.engines])
    )
    return _found(world, num_parts)


def _found(world: World, num_parts: int) -> Steady:
    steps = [step for engine in world.engines for step in engine.counts.steps]
    split = Split()
    for engine in world.engines:
        split.add(engine.counts.split)
    mean = fmean(step.seconds for step in steps)
    batch = sum(engine.counts.steps[0].num_tokens for engine in world.engines)
    sent, received = world.num_bytes()
    return Steady(
        batch=batch,
        tokens_per_s=sum(step.num_drawn for step in steps) / (mean * len(steps)) * len(world.engines),
        step_ms=1e3 * mean,
        error=_error(world.engines[0]),
        num_steps=len(steps),
        micro_batches=num_parts,
        binds=binds(split, world.front_share(world.env.now)),
        shares=split.shares(),
        split_ms=split_ms(split, len(steps)),
        bytes_per_step=(sent + received) / len(steps),
    )


def _fill(world: World, engine: SimEngine, num: int) -> None:
    """Admits sequences and takes their prompts for computed, until each has but one token left to run."""
    for number in range(num):
        world.place(number * len(world.engines) + world.engines.index(engine), world.demand.asks[number])
    scheduler = engine.scheduler
    while True:
        step = scheduler.schedule()
        assert step.chunks, "sequences that are there are run"
        if all(c.num_known == 1 and c.completes for c in step.chunks):
            return
        # No token is drawn: the last one of each prompt is what its first step runs.
        for chunk in step.chunks:
            chunk.sequence.num_computed += chunk.num_tokens - chunk.completes


def _steps(engine: SimEngine, engines: Sequence[SimEngine]) -> Generator[Event, Any, None]:
    for _ in range(MOST_STEPS):
        yield from engine.step()
        if all(map(_is_known, engines)):
            return


def _is_known(engine: SimEngine) -> bool:
    return len(engine.counts.steps) >= LEAST_STEPS and _error(engine) < WELL_KNOWN


def _error(engine: SimEngine) -> float:
    seconds = [step.seconds for step in engine.counts.steps]
    return stdev(seconds) / sqrt(len(seconds)) / fmean(seconds) if len(seconds) > 1 else 0.0
