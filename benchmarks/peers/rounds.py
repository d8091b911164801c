"""Measures all systems in turns, so that what else the machine does hits them alike."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.peers.jobs import Load, Timing
from benchmarks.peers.ours import Measure
from benchmarks.peers.verdict import ORIGIN


@dataclass(slots=True)
class Measured:
    """By system and load, one timing a round; and the way a system chose for the load."""

    timings: dict[tuple[str, Load], list[Timing]] = field(default_factory=dict)
    ways: dict[tuple[str, Load], str] = field(default_factory=dict)


def measure_rounds(systems: Mapping[str, Measure], loads: Sequence[Load], num_rounds: int) -> Measured:
    """Another system begins each round. Whatever a measurement is, it warms itself up first."""
    measured = Measured()
    names = list(systems)
    for index in range(num_rounds):
        started = time.monotonic()
        first = index % len(names)
        for load in loads:
            for name in names[first:] + names[:first]:
                if name == ORIGIN and load.batch > 1:
                    continue
                timing, way = systems[name](load)
                measured.timings.setdefault((name, load), []).append(timing)
                measured.ways[name, load] = way
        print(f"round {index + 1} of {num_rounds}: {time.monotonic() - started:.0f} s", flush=True)
    return measured
