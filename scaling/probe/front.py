"""What tokens that go out take beside the engine's steps, so that a simulation takes what a server took.

In a simulation that work is a task on all cores of the engine's machine while the next step runs
(`scaling.simulation.engine`): where a step leaves cores idle it is for nothing, elsewhere steps get slower.
"""

from collections.abc import Sequence

import msgspec
from scipy.optimize import least_squares

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

_NUM_TURNS = 2
# Tens of microseconds are where a search begins to see a difference, and where it may begin.
_FIRST_US, _STEP = 100.0, 0.1


def with_front(
    machine: Machine, config: ModelConfig, load: Load, alone: Sequence[Measured], services: Sequence[Service]
) -> Machine:
    """The machine with `publish_us` and `token_us`, by least squares of relative errors over all numbers of
    callers. `alone`: steps of the server's model in this process, with `load`; by how much the fit misses
    those is taken off, so that the front does not make up for it."""
    if not services:
        return machine
    shape = shape_of_config(config, alone[0].model)
    says = [msgspec.structs.replace(each, seconds=explained(machine, shape, each)) for each in alone]
    wanted = [
        each.token_s + engine_token_seconds(says, load, each.concurrency) - each.engine_token_s
        for each in services
    ]

    def errors(front_us: Sequence[float]) -> list[float]:
        tried = _with_front(machine, front_us)
        found = (simulated_token_s(tried, config, load, each.concurrency) for each in services)
        return [seconds / token_s - 1 for seconds, token_s in zip(found, wanted, strict=True)]

    # Several lengths of a step are what the two are told apart by: one server alone tells only their sum.
    found = least_squares(
        errors, (_FIRST_US, _FIRST_US), bounds=(0.0, float("inf")), x_scale=_FIRST_US, diff_step=_STEP
    )
    return _with_front(machine, found.x)


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


def _with_front(machine: Machine, front_us: Sequence[float]) -> Machine:
    publish_us, token_us = map(float, front_us)
    overheads = msgspec.structs.replace(machine.overheads, publish_us=publish_us, token_us=token_us)
    return msgspec.structs.replace(machine, overheads=overheads)
