"""A coordinator of a simulation: the product's scheduler and what it decides, and costs in the place of work.

Follows `coordinator.engine.core.engine`, `model_runner` and `moe_model.model.forward_parts` step by step.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from simpy import Environment, Event, Resource

from coordinator.engine.core.batch import split_step
from coordinator.engine.core.engine import EXPERT_WAIT_TURN
from coordinator.engine.core.overlap import Overlap
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.step import Step
from moe_model.errors import ExpertsLostError
from scaling.costs.base import NodeCosts
from scaling.shape import Shape
from scaling.simulation.machine import Cores, Group
from scaling.simulation.routing import Draws
from scaling.simulation.split import Split

Work = Generator[Event, Any, None]
# Between the parts of a step that are in flight: where one stops for its experts.
STOP = None


class Pool(Protocol):
    """Workers: PlainPool or CallPool."""

    num_bytes: list[float]
    num_pairs: int

    def begin(self, layer: int, num_tokens: int, rows_E: NDArray[Any]) -> Generator[Event, Any, Any]: ...
    def finish(self, begun: Any, split: Split) -> Work: ...
    def found(self) -> None: ...
    def wait_for_lost(self, timeout: float) -> Generator[Event, Any, bool]: ...


@dataclass(frozen=True, slots=True)
class StepSeen:
    """What a step was: its time, rows and tokens drawn, and its chunks as (sequence, start, tokens)."""

    seconds: float
    num_tokens: int
    num_drawn: int
    is_decode: bool


@dataclass
class Counts:
    """Of one coordinator. `dispatch` and `combine` in seconds of all steps."""

    steps: list[StepSeen] = field(default_factory=list)
    split: Split = field(default_factory=Split)
    num_lost: int = 0
    num_rows: int = 0
    num_retried: int = 0


class Tokens(Protocol):
    """Who is told of tokens: sequences that have one more, and those that have ended."""

    def __call__(self, drawn: list[Sequence], ended: list[Sequence], failed: list[Sequence]) -> None: ...


class SimEngine:
    """Steps for as long as there are sequences. `front`: the group of all that is not the engine."""

    def __init__(
        self,
        env: Environment,
        shape: Shape,
        scheduler: Scheduler,
        costs: NodeCosts,
        cores: Cores,
        group: Group,
        front: Group,
        threads: float,
        routing: Draws,
        rng: np.random.Generator,
        tokens: Tokens,
        pool: Pool | None,
        overlap: Overlap | None,
        *,
        is_forced: bool = False,
    ) -> None:
        self.env, self.scheduler, self.counts = env, scheduler, Counts()
        self._shape, self._costs, self._cores = shape, costs, cores
        self._group, self.front, self._threads = group, front, threads
        self._routing, self._rng, self._tokens = routing, rng, tokens
        self.pool, self._overlap, self._is_forced = pool, overlap, is_forced
        self._moe = frozenset(shape.moe_layers)
        self._came = env.event()
        # The front is one process: requests and tokens pass it one after the other.
        self._front_turn = Resource(env)
        self.num_sequences = 0

    def arrive(self, sequence: Sequence) -> Work:
        """Requests of one moment come one after the other, as the front reads them: the engine begins with
        the first, and its scheduler holds back the prompts of the rest for the sake of its tokens."""
        yield from self._pass_front(1)
        self.submit(sequence)

    def submit(self, sequence: Sequence) -> None:
        self.scheduler.add(sequence)
        self.num_sequences += 1
        came, self._came = self._came, self.env.event()
        came.succeed()

    def run(self) -> Work:
        """Until the simulation ends."""
        while True:
            if not self.num_sequences:
                yield self._came
                continue
            yield from self.step()

    def step(self) -> Work:
        env, started = self.env, self.env.now
        step = self.scheduler.schedule()
        num_drawn = len(step.sampling)
        try:
            with self._timed("step"):
                yield self._run(self._costs.step(step.num_tokens, num_drawn), 1)
            yield from self._forward(step)
        except ExpertsLostError:
            self.scheduler.failed()
            yield from self._lost(step)
            return
        if num_drawn:
            with self._timed("head"):
                yield self._run(self._costs.head(num_drawn), self._threads)
        if self.pool is not None:
            self.pool.found()
        seconds = env.now - started
        is_decode = all(chunk.num_known == 1 and chunk.completes for chunk in step.chunks)
        self.counts.steps.append(StepSeen(seconds, step.num_tokens, num_drawn, is_decode))
        self.scheduler.update(step, [_token(chunk.sequence) for chunk in step.sampling])
        self.scheduler.took(step, seconds, num_drawn)
        drawn = [chunk.sequence for chunk in step.sampling]
        ended = [sequence for sequence in drawn if sequence.finish_reason()[0] is not None]
        for sequence in ended:
            self._drop(sequence)
        if drawn:
            env.process(self._publish(drawn, ended))

    def _publish(self, drawn: list[Sequence], ended: list[Sequence]) -> Work:
        """Front, streams and the load's client take cores while the next step runs."""
        yield from self._pass_front(len(drawn))
        self._tokens(drawn, ended, [])

    def _pass_front(self, num_messages: int) -> Work:
        with self._front_turn.request() as turn:
            yield turn
            yield self._cores.run(self.front, self._costs.front(num_messages), self._cores.num)

    def _lost(self, step: Step) -> Work:
        """Waits, as the product's engine does between two tries; its time over, the requests fail."""
        self.counts.num_retried += 1
        assert self.pool is not None, "only workers are lost"
        with self._timed("lost"):
            is_left = yield from self.pool.wait_for_lost(EXPERT_WAIT_TURN)
        if not is_left:
            failed = [chunk.sequence for chunk in step.chunks]
            for sequence in failed:
                self._drop(sequence)
            self.counts.num_lost += len(failed)
            self._tokens([], [], failed)

    def _drop(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.num_sequences -= 1

    def _forward(self, step: Step) -> Work:
        if self._overlap is None or self.pool is None:
            yield from self._forward_parts([step])
            return
        with self._overlap.timed(step.num_tokens) as num_parts:
            yield from self._forward_parts(split_step(step, num_parts))

    def _forward_parts(self, parts: list[Step]) -> Work:
        """In turn, each as far as its next experts: while those are computed, the next part goes on."""
        runs = [self._part(part) for part in parts]
        for _ in range(self._shape.n_layers + 1):
            for run in runs:
                for event in run:
                    if event is STOP:
                        break
                    yield event

    def _part(self, part: Step) -> Iterator[Event | None]:
        load, num_rows = part.load, part.num_tokens
        positions = load.singles_seen + load.prefill_seen
        # Each single token has a cache of its own; a prompt's rows share what the mean one sees, at least.
        read = load.singles_seen + load.prefill_seen / max(1, load.prefill)
        for layer in range(self._shape.n_layers):
            seconds = self._costs.shared_layer(layer, num_rows, positions, read)
            is_moe = layer in self._moe
            if is_moe and self._is_forced:
                seconds += self._costs.forced(num_rows)
            with self._timed("shared"):
                yield self._run(seconds, self._threads)
            if is_moe:
                yield from self._experts(layer, num_rows)

    def _experts(self, layer: int, num_rows: int) -> Iterator[Event | None]:
        shape = self._shape
        rows_E = self._routing.draw(layer, num_rows, shape.n_experts, shape.top_k, self._rng)
        self.counts.num_rows += int(rows_E.sum())
        if self.pool is None:
            with self._timed("experts_here"):
                yield self._run(self._costs.experts(rows_E.tolist()), self._threads)
            return
        begun = yield from self.pool.begin(layer, num_rows, rows_E)
        yield STOP
        yield from self.pool.finish(begun, self.counts.split)

    def _run(self, seconds: float, threads: float) -> Event:
        return self._cores.run(self._group, seconds, threads)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started, split = self.env.now, self.counts.split
        yield
        setattr(split, part, getattr(split, part) + self.env.now - started)


def _token(sequence: Sequence) -> int:
    """Any that no other sequence has at this place, so that outputs share no blocks."""
    return (sequence.key * 7919 + len(sequence.token_ids)) % (1 << 30)
