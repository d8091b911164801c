"""Machines that only say how long a step takes, and the same in a noisy place."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from coordinator.engine.core.pacing import Pace
from coordinator.engine.core.step_costs import StepLoad

Machine = Callable[[StepLoad], float]

BLOCK = 16
MAX_STEP_TOKENS = 512


def linear(
    step: float, single: float, token: float, position: float, single_position: float | None = None
) -> Machine:
    """Seconds of each. A single token may pay another price for what it looks at."""
    looked = position if single_position is None else single_position

    def seconds(load: StepLoad) -> float:
        singles = load.singles * single + load.singles_seen * looked
        return step + singles + load.prefill * token + load.prefill_seen * position

    return seconds


def sparse(step: float, expert: float, token: float) -> Machine:
    """Each expert is read if any token chooses it, so the first tokens of a chunk cost most."""

    def seconds(load: StepLoad) -> float:
        num_tokens = load.singles + load.prefill
        return step + expert * (1 - 0.97**num_tokens) + token * num_tokens

    return seconds


def tiled(step: float, single: float, tile: float) -> Machine:
    """64 tokens of a chunk cost as much as one."""
    return lambda load: step + load.singles * single - (-load.prefill // 64) * tile


MACHINES: dict[str, Machine] = {
    "small": linear(4e-3, 4e-4, 2.2e-4, 5e-8, 2e-8),
    "fast": linear(2e-4, 1e-5, 1e-5, 1e-9),
    "attention": linear(4e-3, 4e-4, 5e-5, 2e-7, 4e-7),
    "tiled": tiled(4e-3, 3e-4, 14e-3),
}
# Their steps take longer than any bound that one would like.
SLOW: dict[str, Machine] = {
    "slow": linear(0.2, 0.05, 0.1, 1e-5),
    "sparse": sparse(0.24, 1.8, 6e-3),
}


def noisy(machine: Machine, seed: int, deviation: float = 0.15, pauses: float = 0.02) -> Machine:
    """Others share it; now and then a step takes three times as long."""
    draw = random.Random(seed)

    def seconds(load: StepLoad) -> float:
        factor = draw.lognormvariate(0, deviation)
        return machine(load) * factor * (3 if draw.random() < pauses else 1)

    return seconds


@dataclass
class Streams:
    """Streams that decode while prompts come, over a machine."""

    machine: Machine
    pace: Pace
    lengths: list[int]

    @classmethod
    def started(cls, machine: Machine, max_gap: float, num_streams: int = 16, length: int = 32) -> "Streams":
        streams = cls(machine, Pace(max_gap, BLOCK), [length] * num_streams)
        streams.run(StepLoad.of((0, length) for _ in range(num_streams)))
        streams.decode(20)
        return streams

    def run(self, load: StepLoad) -> float:
        seconds = self.machine(load)
        self.pace.observe(load, seconds)
        return seconds

    def decode(self, num_steps: int) -> list[float]:
        return [self.step([])[1] for _ in range(num_steps)]

    def step(self, prompts: list[tuple[int, int]]) -> tuple[list[int], float]:
        """One step with what there is time for of each (start, tokens that remain)."""
        singles = StepLoad.of((length, 1) for length in self.lengths)
        share = self.pace.share(singles)
        taken, load = [], singles
        for start, num_remaining in prompts:
            taken.append(share.take(start, num_remaining))
            load = load.with_prefill(start, taken[-1]) if taken[-1] else load
        self.lengths = [length + 1 for length in self.lengths]
        return taken, self.run(load)

    def prompt(self, num_tokens: int, start: int = 0) -> Iterator[tuple[int, float]]:
        """Tokens and seconds of each step until it has been computed."""
        while start < num_tokens:
            most = min(num_tokens - start, MAX_STEP_TOKENS - len(self.lengths))
            (taken,), seconds = self.step([(start, most)])
            start += taken
            yield taken, seconds
