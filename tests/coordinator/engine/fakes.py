"""Runners that need no model."""

import threading
from collections.abc import Callable

from coordinator.engine.core.engine import Engine, Runner
from coordinator.engine.core.observer import EngineObserver
from coordinator.engine.core.prepared import NO_VOCABULARY, Preparer
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.speculation import Speculation
from coordinator.engine.core.step import Step
from coordinator.engine.core.step_result import StepResult
from moe_model.errors import ExpertMeshError
from tests.cache_sizes import whole_sizes


class CountingRunner:
    """The next token of a sequence is its length; keeps the steps it has seen."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.forgotten: list[int] = []

    def run(self, step: Step) -> StepResult:
        self.steps.append(step)
        return StepResult([len(chunk.sequence.token_ids) for chunk in step.sampling])

    def forget(self, key: int) -> None:
        self.forgotten.append(key)


class FailingRunner(CountingRunner):
    """Fails the sequences that `is_bad` picks, as data: with an error and no token."""

    def __init__(self, is_bad: Callable[[Sequence], bool], error: ExpertMeshError) -> None:
        super().__init__()
        self._is_bad = is_bad
        self._error = error

    def run(self, step: Step) -> StepResult:
        result = super().run(step)
        bad = {c.sequence.key for c in step.chunks if self._is_bad(c.sequence)}
        pairs = zip(step.sampling, result.token_ids, strict=True)
        tokens = [None if chunk.sequence.key in bad else token for chunk, token in pairs]
        return StepResult(tokens, failures=dict.fromkeys(bad, self._error))


class ScriptedRunner(CountingRunner):
    """Calls `before` with the number of each step, from 1; what it raises is the step's failure."""

    def __init__(self, before: Callable[[int, Step], None]) -> None:
        super().__init__()
        self._before = before

    def run(self, step: Step) -> StepResult:
        tokens = super().run(step)
        self._before(len(self.steps), step)
        return tokens


class GatedRunner(CountingRunner):
    """Each step waits for a permit; `entered` is released when a step has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)

    def permit(self, num_steps: int = 1) -> None:
        self._permits.release(num_steps)

    def run(self, step: Step) -> StepResult:
        self.entered.release()
        assert self._permits.acquire(timeout=30), "no permit for this step"
        return super().run(step)


def engine_over(
    runner: Runner,
    max_seq_len: int = 12,
    num_blocks: int = 32,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_step_tokens: int = 64,
    *,
    prefix_caching: bool = True,
    preparer: Preparer = NO_VOCABULARY,
    observer: EngineObserver | None = None,
    speculation: Speculation | None = None,
) -> Engine:
    sizes = whole_sizes(num_blocks, block_size)
    scheduler = Scheduler(
        sizes, max_num_seqs, max_step_tokens, prefix_caching=prefix_caching, speculation=speculation
    )
    return Engine(scheduler, runner, max_seq_len, observer=observer, preparer=preparer)
