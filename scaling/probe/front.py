"""What a token takes beside the engine's steps, so that a simulation with it takes what a server took.

In a simulation that work is a task on all cores of the engine's machine while the next step runs
(`scaling.simulation.engine`): where a step leaves cores idle it is for nothing, elsewhere steps get slower.
"""

from collections.abc import Sequence
from math import isclose
from statistics import median

import msgspec

from benchmarks.engine import Load
from coordinator.config.engine import EngineConfig
from moe_model.config import ModelConfig
from scaling.machines import Machine, Machines
from scaling.probe.fit import explained
from scaling.probe.service import Service, engine_token_seconds
from scaling.probe.steps import Measured
from scaling.shape import shape_of_config
from scaling.simulation.setting import Ask, CoordinatorPlace, Demand, Setting
from scaling.simulation.world import simulate

_CLOSE = 1e-3
_MOST_TRIES = 8
_NUM_TURNS = 2


def with_front(
    machine: Machine, config: ModelConfig, load: Load, alone: Sequence[Measured], services: Sequence[Service]
) -> Machine:
    """The machine with `token_us`: the median of all numbers of callers. `alone`: steps of the server's model
    in this process, with `load`; by how much the fit misses those is taken off, so that the front does not
    make up for it."""
    if not services:
        return machine
    shape = shape_of_config(config, alone[0].model)
    says = [msgspec.structs.replace(each, seconds=explained(machine, shape, each)) for each in alone]
    found = [
        _token_us(
            machine,
            config,
            load,
            each.concurrency,
            each.token_s + engine_token_seconds(says, load, each.concurrency) - each.engine_token_s,
        )
        for each in services
    ]
    return _with_token_us(machine, median(found))


def simulated_token_s(machine: Machine, config: ModelConfig, load: Load, concurrency: int) -> float:
    """Seconds of a token of so many callers, one request after the other, as a simulation has it."""
    setting = Setting(
        config,
        Machines((machine,)),
        (CoordinatorPlace(machine.name, machine.cores),),
        engine=EngineConfig(
            dtype="bfloat16", max_gap_ms=None, micro_batches=1, kv_cache_bytes=256 << 20, prefix_caching=False
        ),
    )
    asks = [Ask(None, load.prompt_tokens, load.new_tokens)] * (concurrency * _NUM_TURNS)
    return 1 / simulate(setting, Demand(asks, concurrency)).tokens_per_s


def _token_us(machine: Machine, config: ModelConfig, load: Load, concurrency: int, token_s: float) -> float:
    """By the secant through the last two tries; zero where a simulation without it takes as long already."""

    def missing(token_us: float) -> float:
        return token_s - simulated_token_s(_with_token_us(machine, token_us), config, load, concurrency)

    before, left_before = 0.0, missing(0.0)
    if left_before <= 0:
        return 0.0
    now = 1e6 * left_before
    for _ in range(_MOST_TRIES):
        left = missing(now)
        if isclose(left, 0.0, abs_tol=_CLOSE * token_s) or left == left_before:
            break
        slope = (left_before - left) / (now - before)
        before, left_before, now = now, left, max(0.0, now + left / slope)
    return now


def _with_token_us(machine: Machine, token_us: float) -> Machine:
    return msgspec.structs.replace(
        machine, overheads=msgspec.structs.replace(machine.overheads, token_us=token_us)
    )
