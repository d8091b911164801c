"""A peer's process: JSON lines in, one JSON line out for each. Runs in the peers' environment."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from benchmarks.peers.jobs import Load, Probe, Timing

TRIALS = 2
TRIAL_NEW_TOKENS = 16


class Peer(Protocol):
    """A system that greedily continues prompts, and can be set in more than one way."""

    @property
    def version(self) -> str: ...

    def ways(self, load: Load) -> Sequence[str]:
        """The settings a user could choose between; each load is measured in the fastest."""

    def run(self, load: Load, way: str) -> Timing: ...

    def probe(self, prompt: Sequence[int], new_tokens: int) -> Probe: ...


def serve(open_peer: Callable[[Mapping[str, Any]], Peer]) -> None:
    """Answers until the input ends. The options are the first argument.

    Whatever a library prints goes to standard error: standard output is for the answers.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: Mapping[str, object]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        peer = open_peer(json.loads(sys.argv[1]))
        answer({"version": peer.version})
        chosen: dict[Load, str] = {}
        for line in sys.stdin:
            answer(answer_to(peer, json.loads(line), chosen))
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
        raise


def answer_to(peer: Peer, job: Mapping[str, Any], chosen: dict[Load, str]) -> Mapping[str, object]:
    """Each load is measured in the way that was the fastest when it was first asked for."""
    if job["kind"] == "probe":
        return asdict(peer.probe(job["prompt"], job["new_tokens"]))
    load = Load(**job["load"])
    if load not in chosen:
        chosen[load] = _fastest_way(peer, load)
    way = chosen[load]
    if job["kind"] == "choose":
        return {"way": way}
    peer.run(load, way)
    return {"way": way, **asdict(peer.run(load, way))}


def _fastest_way(peer: Peer, load: Load) -> str:
    """By the best of some trials, taken in turns, after one of each that warms up.

    They decode some tokens only, which stand for all.
    """
    ways = peer.ways(load)
    trial = replace(load, new_tokens=min(load.new_tokens, TRIAL_NEW_TOKENS))
    weight = (load.new_tokens - 1) / max(trial.new_tokens - 1, 1)

    def seconds(way: str) -> float:
        timing = peer.run(trial, way)
        return timing.prefill_seconds + weight * timing.decode_seconds

    turns = [{way: seconds(way) for way in ways} for _ in range(TRIALS + 1)]
    return min(ways, key=lambda way: min(turn[way] for turn in turns[1:]))
