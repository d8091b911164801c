"""Measures all systems in turns, so that what else the machine does hits them alike."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from benchmarks.peers.jobs import Load, Timing
from benchmarks.peers.ours import Measure
from benchmarks.peers.process import PeerError
from benchmarks.peers.verdict import ORIGIN


@dataclass(slots=True)
class Measured:
    """By system and load, one timing a round; and the way a system chose for the load. `failures`: of what
    could not be measured, or not to the end, why."""

    timings: dict[tuple[str, Load], list[Timing]] = field(default_factory=dict)
    ways: dict[tuple[str, Load], str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def measure_rounds(
    systems: Mapping[str, Measure],
    loads: Sequence[Load],
    num_rounds: int,
    failures: Mapping[str, str] = MappingProxyType({}),
) -> Measured:
    """Another system begins each round. Whatever a measurement is, it warms itself up first. A system that
    fails, or is among `failures` already, is left out from there on."""
    measured = Measured(failures=dict(failures))
    names = [name for name in systems if name not in measured.failures]
    for index in range(num_rounds):
        started = time.monotonic()
        first = index % max(1, len(names))
        for load in loads:
            for name in names[first:] + names[:first]:
                if name in measured.failures or (name == ORIGIN and load.batch > 1):
                    continue
                try:
                    timing, way = systems[name](load)
                except PeerError as error:
                    measured.failures[name] = str(error)
                    continue
                measured.timings.setdefault((name, load), []).append(timing)
                measured.ways[name, load] = way
        print(f"round {index + 1} of {num_rounds}: {time.monotonic() - started:.0f} s", flush=True)
    return measured
