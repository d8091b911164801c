"""The engine: requests in, tokens out, one step at a time. Single-threaded; engine_thread.py gives it one."""

import logging
import time
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from itertools import count
from typing import NamedTuple, Protocol

import torch

from coordinator.engine.core.observer import EngineObserver
from coordinator.engine.core.outputs import OutputWriter
from coordinator.engine.core.prepared import NO_VOCABULARY, Prepared, Preparer
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.sequence import Sequence, max_output_tokens
from coordinator.engine.core.step import Chunk, Further, Step
from coordinator.engine.core.step_result import RoutedRows, StepResult
from coordinator.engine.messages.errors import CapacityError, EngineError, StepMemoryError
from coordinator.engine.messages.output import FinishReason, Output
from coordinator.engine.messages.records import StepRecord, TracedRequest
from coordinator.engine.messages.request import Request
from coordinator.engine.messages.stats import EngineStats
from coordinator.engine.versions.model_versions import ModelVersions
from moe_model.errors import ExpertMeshError, ExpertsLostError, NumericError, UserError
from moe_model.versions.model_version import ModelVersion

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """Turns a step into tokens; ModelRunner, or a test's own."""

    def run(self, step: Step) -> StepResult: ...

    def forget(self, key: int) -> None:
        """The sequence of this key is gone."""


# Seconds: an engine that waits for lost experts hears its callers so often.
EXPERT_WAIT_TURN = 0.2


class WatchedExperts(Protocol):
    """What the engine asks of its experts besides their answers: see RunningExperts."""

    def wait_for_lost(self, timeout: float) -> bool: ...
    def found(self) -> None: ...
    def tell_dispatches(self) -> None: ...
    def idle(self) -> None: ...


class Recorder(Protocol):
    """What is told of the routing, where it is recorded: see RoutingRecorder."""

    def step(self, num_tokens: int, routed: Seq[RoutedRows]) -> None: ...
    def ended(self, sequence: Sequence) -> None: ...


class _Ran(NamedTuple):
    """A run of a step, whose times are those of StepRecord."""

    result: StepResult
    start_ns: int
    end_ns: int
    seconds: float


class Engine:
    """Schedules, runs, updates."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        max_seq_len: int,
        experts: WatchedExperts | None = None,
        observer: EngineObserver | None = None,
        versions: ModelVersions | None = None,
        preparer: Preparer = NO_VOCABULARY,
        recorder: Recorder | None = None,
    ) -> None:
        """`versions` are the runner's; None: the model stays as it is."""
        self._scheduler = scheduler
        self._runner = runner
        self._max_seq_len = max_seq_len
        self._experts = experts
        self._observer = observer
        self._recorder = recorder
        self.versions = versions
        self.preparer = preparer
        # The versions that had sequences when it was last looked which are to be dropped.
        self._in_use: set[int] | None = None
        self._requests: dict[str, list[Sequence]] = {}
        self._timed: dict[str, Request] = {}
        self._keys = count()
        self._writer = OutputWriter()
        self._num_steps = 0
        self._stopped: EngineError | None = None
        capacity = scheduler.pools.capacity_tokens
        self._capacity_tokens = max_seq_len if capacity is None else capacity

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        stopped = self._stopped is not None
        return EngineStats(
            num_running=0 if stopped else len(scheduler.running),
            num_waiting=0 if stopped else len(scheduler.waiting),
            num_free_blocks=scheduler.pools.num_free,
            num_blocks=scheduler.pools.num_blocks,
            kv_usage=0.0 if stopped else scheduler.pools.usage,
            kv_capacity_tokens=self._capacity_tokens,
            num_steps=self._num_steps,
            num_preemptions=scheduler.num_preemptions,
            prefix_queries=scheduler.prefix_cache.num_queries,
            prefix_hits=scheduler.prefix_cache.num_hits,
            stopped=stopped,
        )

    def submit(self, request: Request, prepared: Prepared | None = None) -> None:
        """Queues a request, for the newest version of the model. `prepared` None: it is prepared here, which
        may take long where it has a constraint.

        Raises CapacityError when it can never fit the cache, UserError, EngineError.
        """
        assert request.request_id not in self._requests, f"request {request.request_id} is running"
        if self._stopped is not None:
            raise self._stopped
        self._check(request)
        prepared = prepared or self.preparer.prepare(request)
        block_size = self._scheduler.pools.block_size
        version = 0 if self.versions is None else self.versions.newest.number
        sequences = [
            Sequence(request, self._max_seq_len, block_size, index, next(self._keys), version, prepared)
            for index in range(request.num_sequences)
        ]
        self._requests[request.request_id] = sequences
        if request.stop.time_limit is not None:
            self._timed[request.request_id] = request
        for sequence in sequences:
            self._scheduler.add(sequence)

    def abort(self, request_id: str) -> list[Output]:
        """Ends what runs of a request and frees what it held."""
        return self._end(request_id, FinishReason.ABORT)

    def stop(self, error: EngineError) -> list[Output]:
        """Ends every request with the error and takes no more: for a bookkeeping that can't be trusted."""
        self._stopped = error
        now = time.monotonic()
        outputs = [self._writer.failed(sequences[0], error, now) for sequences in self._requests.values()]
        self._requests.clear()
        self._timed.clear()
        return outputs

    def step(self) -> list[Output]:
        """Runs one step. A request that makes it fail ends with the error, and no other does.

        A step that lost its experts moved nothing: it is scheduled again, until the experts are back or
        their time is over.
        """
        outputs = self._end_timed()
        self._settle()
        if not self._requests:
            return outputs
        started = time.perf_counter()
        step = self._scheduler.schedule()
        self._mark_scheduled(step)
        self._num_steps += 1
        try:
            ran = self._run(step)
        except ExpertsLostError as error:
            self._scheduler.failed()
            is_over = self._experts is None or not self._experts.wait_for_lost(EXPERT_WAIT_TURN)
            if is_over and step.is_one:
                return outputs + self._fail(step.chunks, error)
            # Those that need none of the lost experts go on.
            return outputs + self._run_apart(step, is_over=is_over)
        except Exception as error:  # noqa: BLE001 - the top of the engine's thread
            self._scheduler.failed()
            if not step.is_one:
                logger.warning(
                    "step %d failed; its %d parts run one by one", self._num_steps, len(step.chunks)
                )
                return outputs + self._run_apart(step)
            return outputs + self._fail(step.chunks, self._foreseen(error))
        if self._experts is not None:
            self._experts.found()
        further = self._move(step, ran)
        outputs += self._outputs(step, ran.result, further)
        num_new_tokens = len(step.sampling) + _number(further)
        self._scheduler.took(step, time.perf_counter() - started, num_new_tokens)
        return outputs

    def idle(self) -> None:
        """For when there is nothing to do: looks after the experts."""
        self._settle()
        if self._experts is not None:
            self._experts.idle()

    def switch(self, version: ModelVersion) -> None:
        """Requests that come from now on use another version; those that are here keep theirs.

        Raises what the experts' backend raises; then nothing has changed.
        """
        assert self.versions is not None, "the model of this engine stays as it is"
        self.versions.switch(version)
        self._in_use = None
        self._settle()

    def check_integrity(self) -> None:
        """Raises AssertionError when blocks or sequences are lost."""
        self._scheduler.check_integrity()
        known = {id(sequence) for sequences in self._requests.values() for sequence in sequences}
        assert known == {id(s) for s in [*self._scheduler.running, *self._scheduler.waiting]}
        assert self._timed.keys() <= self._requests.keys(), "a request that is gone has a time limit"

    def _check(self, request: Request) -> None:
        num_prompt, max_output = len(request.prompt_ids), max_output_tokens(request, self._max_seq_len)
        if not num_prompt:
            raise UserError("prompt: is empty")
        if self.versions is not None:
            self.versions.check(request.experts)
        if max_output < 1 and request.stop.max_tokens > 0:
            raise UserError(f"max_tokens: no token fits after a prompt of {num_prompt}")
        longest = num_prompt + max_output
        capacity = self._capacity_tokens
        if min(longest, self._max_seq_len) > capacity:
            raise CapacityError(f"request needs {longest} tokens of KV cache, there are {capacity}")

    def _run(self, step: Step) -> _Ran:
        """Moves nothing, so that a step that raises can be run again."""
        start_ns, started = time.time_ns(), time.perf_counter()
        try:
            result = self._runner.run(step)
        finally:
            if self._experts is not None:
                self._experts.tell_dispatches()
        return _Ran(result, start_ns, time.time_ns(), time.perf_counter() - started)

    def _move(self, step: Step, ran: _Ran) -> Further:
        """Takes over what a step has found, and tells of it: only now it is known which drawn tokens come
        before a sequence's end. What it raises is about our own bookkeeping, and for `stop`."""
        further = self._scheduler.update(step, ran.result.token_ids, ran.result.further)
        if self._recorder is not None:
            self._recorder.step(step.num_tokens, ran.result.routed)
        if self._observer is not None:
            live = () if self.versions is None else self.versions.live
            self._observer.step(_record(step, ran, _number(further), live))
        return further

    def _run_apart(self, step: Step, *, is_over: bool = False) -> list[Output]:
        """Each sequence of a failed step alone: only those that fail alone as well end with an error; those
        that lack experts once the time to wait for them `is_over`. None fails for what it only drafted."""
        outputs: list[Output] = []
        for chunk in step.chunks:
            if chunk.sequence.request.request_id not in self._requests:
                continue
            alone = Step((chunk.undrafted,))
            try:
                ran = self._run(alone)
            except ExpertsLostError as error:
                # While there is time left, the next step meets them again, and waits.
                if is_over:
                    outputs += self._fail((chunk,), error)
            except Exception as error:  # noqa: BLE001 - the top of the engine's thread
                outputs += self._fail((chunk,), self._foreseen(error))
            else:
                outputs += self._outputs(alone, ran.result, self._move(alone, ran))
        return outputs

    def _foreseen(self, error: Exception) -> ExpertMeshError:
        """What the request ends with; the log has what was not foreseen."""
        if isinstance(error, ExpertMeshError):
            logger.warning("step %d failed: %s", self._num_steps, error)
            return error
        logger.error("step %d failed", self._num_steps, exc_info=error)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return StepMemoryError("not enough memory for a step")
        return EngineError("a step of the engine failed")

    def _outputs(self, step: Step, result: StepResult, further: Further) -> list[Output]:
        now = time.monotonic()
        outputs: list[Output] = []
        for chunk in step.chunks if result.failures else ():
            error = result.failures.get(chunk.sequence.key)
            if error is None or chunk.sequence.request.request_id not in self._requests:
                continue
            if isinstance(error, NumericError):
                # Whatever broke its numbers may stand in its blocks.
                self._scheduler.distrust(chunk.sequence)
            outputs += self._fail((chunk,), error)
        for output, sequence in self._writer.write(step, result, further, now):
            if sequence.request.request_id in self._requests:
                outputs.append(output)
                if output.is_last:
                    self._drop(sequence)
        return outputs

    def _settle(self) -> None:
        """Drops the versions that no sequence is of. One that cannot be dropped now stays till later."""
        if self.versions is None or len(self.versions.live) == 1:
            return
        in_use = {sequence.version for each in self._requests.values() for sequence in each}
        if in_use == self._in_use:
            return
        self._in_use = in_use
        try:
            self.versions.keep(in_use)
        except (ExpertMeshError, MemoryError, torch.OutOfMemoryError) as error:
            logger.warning("old experts are kept for now: %s", error)

    def _mark_scheduled(self, step: Step) -> None:
        new = [chunk.sequence for chunk in step.chunks if chunk.sequence.first_scheduled is None]
        now = time.monotonic() if new else 0.0
        for sequence in new:
            sequence.first_scheduled = now

    def _end_timed(self) -> list[Output]:
        """Ends the requests whose time is over, waiting or running."""
        if not self._timed:
            return []
        now = time.monotonic()
        late = [name for name, request in self._timed.items() if is_late(request, now)]
        return [output for name in late for output in self._end(name, FinishReason.TIME_LIMIT)]

    def _end(self, request_id: str, reason: FinishReason) -> list[Output]:
        now = time.monotonic()
        sequences = list(self._requests.get(request_id, ()))
        outputs = [self._writer.ended(sequence, reason, now) for sequence in sequences]
        for sequence in sequences:
            self._drop(sequence)
        return outputs

    def _fail(self, chunks: Iterable[Chunk], error: ExpertMeshError) -> list[Output]:
        """Ends the chunks' requests, each as a whole, with one output."""
        now = time.monotonic()
        outputs = []
        for request_id in dict.fromkeys(chunk.sequence.request.request_id for chunk in chunks):
            sequences = list(self._requests[request_id])
            outputs.append(self._writer.failed(sequences[0], error, now))
            for sequence in sequences:
                self._drop(sequence)
        return outputs

    def _drop(self, sequence: Sequence) -> None:
        request_id = sequence.request.request_id
        siblings = self._requests[request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._requests[request_id]
            self._timed.pop(request_id, None)
        self._scheduler.remove(sequence)
        self._runner.forget(sequence.key)
        if self._recorder is not None:
            self._recorder.ended(sequence)


def is_late(request: Request, now: float) -> bool:
    limit = request.stop.time_limit
    return limit is not None and now - request.arrival_time >= limit


def _number(further: Further) -> int:
    """How many tokens follow the first ones that were drawn, as far as they were taken."""
    return sum(map(len, further.values())) if further else 0


def _record(step: Step, ran: _Ran, num_further: int, live: Iterable[ModelVersion]) -> StepRecord:
    traced = {n: c.sequence for c in step.chunks if (n := c.sequence.request.trace) is not None}
    versions = {version.number: version.expert_versions for version in live} if traced else {}
    return StepRecord(
        start_ns=ran.start_ns,
        end_ns=ran.end_ns,
        seconds=ran.seconds,
        num_tokens=step.num_tokens,
        num_prefill_tokens=sum(c.num_tokens for c in step.chunks if c.num_known > 1 or not c.completes),
        num_sequences=len(step.chunks),
        num_new_tokens=len(step.sampling) + num_further,
        num_draft_tokens=step.num_drafted,
        num_accepted_tokens=num_further,
        traces=tuple(
            TracedRequest(number, sequence.version, versions.get(sequence.version, ()))
            for number, sequence in traced.items()
        ),
    )
