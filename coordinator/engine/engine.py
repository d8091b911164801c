"""The engine: requests in, tokens out, one step at a time. Single-threaded; engine_thread.py gives it one."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from coordinator.engine.request import FinishReason, Output, Request
from coordinator.engine.scheduler import Scheduler, Step
from coordinator.engine.sequence import Sequence, max_output_tokens
from moe_model.errors import ExpertMeshError, ExpertsLostError, NumericError, UserError, WorldError

logger = logging.getLogger(__name__)


class CapacityError(UserError):
    """A request can never fit the KV cache."""


class EngineError(WorldError):
    """A step failed for a reason nobody foresaw; the log has it."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot between two steps."""

    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    num_steps: int = 0
    num_preemptions: int = 0


class Runner(Protocol):
    """Turns a step into tokens; ModelRunner, or a test's own."""

    def run(self, step: Step) -> list[int | None]:
        """Returns the next token of each of `step.sampling`; None where the logits are not finite."""


class Engine:
    """Schedules, runs, updates."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        max_seq_len: int,
        wait_for_experts: Callable[[], None] | None = None,
        expert_wait_timeout: float = 0.0,
    ) -> None:
        """`wait_for_experts` returns when lost experts are back, or after a moment in any case."""
        self._scheduler = scheduler
        self._runner = runner
        self._max_seq_len = max_seq_len
        self._wait_for_experts = wait_for_experts
        self._expert_wait_timeout = expert_wait_timeout
        self._lost_since: float | None = None
        self._sequences: dict[str, Sequence] = {}
        self._num_steps = 0
        self._stopped: EngineError | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_free_blocks=scheduler.allocator.num_free,
            num_blocks=scheduler.allocator.num_blocks,
            num_steps=self._num_steps,
            num_preemptions=scheduler.num_preemptions,
        )

    def submit(self, request: Request) -> None:
        """Queues a request. Raises CapacityError when it can never fit the cache, UserError, EngineError."""
        assert request.request_id not in self._sequences, f"request {request.request_id} is running"
        if self._stopped is not None:
            raise self._stopped
        max_output = max_output_tokens(request, self._max_seq_len)
        if not request.prompt_ids:
            raise UserError("prompt: is empty")
        if max_output < 1:
            raise UserError(f"max_tokens: no token fits after a prompt of {len(request.prompt_ids)}")
        longest = len(request.prompt_ids) + max_output
        capacity = self._scheduler.allocator.num_blocks * self._scheduler.block_size
        if min(longest, self._max_seq_len) > capacity:
            raise CapacityError(f"request needs {longest} tokens of KV cache, there are {capacity}")
        sequence = Sequence(request, self._max_seq_len)
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> Output | None:
        """Ends a request and frees what it held; None when it is not running."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        self._drop(sequence)
        return sequence.last_output(time.monotonic(), reason=FinishReason.ABORT)

    def stop(self, error: EngineError) -> list[Output]:
        """Ends every request with the error and takes no more: for a bookkeeping that can't be trusted."""
        self._stopped = error
        now = time.monotonic()
        outputs = [sequence.last_output(now, error=error) for sequence in self._sequences.values()]
        self._sequences.clear()
        return outputs

    def step(self) -> list[Output]:
        """Runs one step. A step that fails ends the requests in it with the error, and nothing else.

        A step that lost its experts moved nothing: it returns nothing and is scheduled again, until the
        experts are back or `expert_wait_timeout` is over.
        """
        step = self._scheduler.schedule()
        self._mark_scheduled(step)
        self._num_steps += 1
        try:
            tokens = self._runner.run(step)
        except ExpertsLostError as error:
            return [] if self._waited() else self._fail(step, error)
        except ExpertMeshError as error:
            logger.warning("step %d failed: %s", self._num_steps, error)
            return self._fail(step, error)
        except Exception:
            logger.exception("step %d failed", self._num_steps)
            return self._fail(step, EngineError("a step of the engine failed"))
        self._lost_since = None
        self._scheduler.update(step, tokens)
        now = time.monotonic()
        return [self._output(c.sequence, token, now) for c, token in zip(step.sampling, tokens, strict=True)]

    def check_integrity(self) -> None:
        """Raises AssertionError when blocks or sequences are lost."""
        self._scheduler.check_integrity()
        known = {id(sequence) for sequence in self._sequences.values()}
        assert known == {id(s) for s in [*self._scheduler.running, *self._scheduler.waiting]}

    def _waited(self) -> bool:
        """Whether there was time left to wait for the experts; once over, only a good step resets it."""
        if self._wait_for_experts is None:
            return False
        now = time.monotonic()
        if self._lost_since is None:
            self._lost_since = now
            logger.warning("experts lost; waiting at most %.0f s for them", self._expert_wait_timeout)
        if now - self._lost_since >= self._expert_wait_timeout:
            return False
        self._wait_for_experts()
        return True

    def _mark_scheduled(self, step: Step) -> None:
        now = time.monotonic()
        for chunk in step.chunks:
            if chunk.sequence.first_scheduled is None:
                chunk.sequence.first_scheduled = now

    def _output(self, sequence: Sequence, token_id: int | None, now: float) -> Output:
        if token_id is None:
            self._drop(sequence)
            return sequence.last_output(now, error=NumericError("the model's logits are not finite"))
        if sequence.first_token is None:
            sequence.first_token = now
        reason, stop_token_id = sequence.finish_reason()
        if reason is None:
            return Output(sequence.request.request_id, (token_id,))
        self._drop(sequence)
        return sequence.last_output(now, (token_id,), reason, stop_token_id)

    def _fail(self, step: Step, error: ExpertMeshError) -> list[Output]:
        now = time.monotonic()
        for chunk in step.chunks:
            self._drop(chunk.sequence)
        return [chunk.sequence.last_output(now, error=error) for chunk in step.chunks]

    def _drop(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.request_id]
        self._scheduler.remove(sequence)
