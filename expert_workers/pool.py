"""ExpertPool: an ExpertBackend whose experts are in workers: cut, send, gather once, validate, combine.

Knows no process, no Ray and no socket: those are the transport's. `begin`, `finish` and `revive` belong to
one thread; `topology` and `stats` may be asked from any. Shapes: T tokens, D d_model, E experts.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Self

from torch import Tensor

from expert_workers.dispatch import Dispatch, PoolOptions, Sent
from expert_workers.members import Expected, Members, WorkerState, introduce
from expert_workers.placement import Placement
from expert_workers.pool_stats import DispatchRecord, Exchange, PoolObserver, PoolStats, StatsRecorder
from expert_workers.slices import cut
from expert_workers.transport import Failure, FailureReason, Transport
from expert_workers.wire import ExpertCall, ExpertReply, ReplyForm, validate_reply
from expert_workers.worker import WorkerInfo
from moe_model.errors import ReplyError
from moe_model.router import Routing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One worker as the topology shows it. `experts` is layer -> experts; `routed_rows` are this pool's."""

    rank: int
    state: WorkerState
    node_id: str
    pid: int
    device: str
    experts: Mapping[int, tuple[int, ...]]
    routed_rows: int
    num_bytes: int


class ExpertPool:
    """Runs the experts of a layer in workers; equal to LocalExperts over the same experts.

    To the last bit where CPUs and numbers of threads are the same.
    """

    def __init__(
        self,
        placement: Placement,
        transport: Transport,
        infos: Mapping[int, WorkerInfo],
        options: PoolOptions,
        expected: Expected,
        observer: PoolObserver | None = None,
    ) -> None:
        self._observer = observer
        self._placement = placement
        self._transport = transport
        self._options = options
        self._members = Members(placement, transport, infos, expected, options.retry_interval)
        self._stats = StatsRecorder(placement.num_workers)
        self._processes = {rank: _process(info) for rank, info in infos.items()}
        self._reasons: dict[int, FailureReason] = {}
        self._call_ids = count(1)
        self._epoch = 0

    @classmethod
    def connect(
        cls,
        placement: Placement,
        transport: Transport,
        options: PoolOptions | None = None,
        expected: Expected | None = None,
        observer: PoolObserver | None = None,
    ) -> Self:
        """Asks the workers what they hold. Raises WorkerStartError unless it is what the placement says."""
        options, expected = options or PoolOptions(), expected or Expected()
        infos = introduce(placement, transport, expected, time.monotonic() + options.start_timeout)
        return cls(placement, transport, infos, options, expected, observer)

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """As ExpertBackend. Raises ExpertsLostError when no live worker holds an expert the rows need."""
        return self.finish(self.begin(layer, x_TD, routing))

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Dispatch:
        """As ExpertBackend. Raises ExpertsLostError."""
        start_ns, started = time.time_ns(), time.perf_counter()
        self._take_back(self._members.poll())
        dispatch = Dispatch(layer, x_TD, routing, self._placement.n_experts, self._options, start_ns, started)
        self._send(dispatch, dispatch.pairs.counts_E)
        return dispatch

    def finish(self, begun: Dispatch) -> Tensor:
        """As ExpertBackend; sends again to replicas what a worker did not answer. ExpertsLostError."""
        exchange, assembly = Exchange(), begun.assembly()
        left_E = list(begun.pairs.counts_E)
        while True:
            num_answered = 0
            for sent, reply in self._collect(begun, exchange):
                assembly.add(sent.part, reply.y_ND)
                num_answered += 1
                for expert, _ in sent.part.segments:
                    left_E[expert] = 0
            if num_answered == len(begun.sent):
                break
            self._send(begun, left_E)
        computed = time.perf_counter()
        y_TD = assembly.result().to(begun.device, begun.dtype)
        ended = time.perf_counter()
        self._stats.dispatched(ended - begun.started)
        if self._observer is not None:
            self._observer.dispatched(_record(begun, ended - begun.started, ended - computed, exchange))
        return y_TD

    def revive(self, deadline: float) -> frozenset[int]:
        """Waits until a lost worker is back, or for `deadline` (time.monotonic()); returns those that are."""
        back = self._members.revive(deadline)
        self._take_back(back)
        return back

    def watch(self) -> None:
        """For when nothing is dispatched: finds out who is gone and who is back. Waits for nobody."""
        lost, back = self._members.watch(self._options.call_timeout)
        for rank, failure in lost:
            self._lose(rank, failure)
        self._take_back(back)

    def missing_experts(self) -> int:
        """How many experts, counted per layer, no live worker holds. Any thread may ask."""
        live = self._members.live
        if len(live) == self._placement.num_workers:
            return 0
        held = {key for rank in live for key in self._placement.experts_of(rank)}
        return self._placement.n_layers * self._placement.n_experts - len(held)

    @property
    def lost(self) -> frozenset[int]:
        return frozenset(range(self._placement.num_workers)) - self._members.live

    def topology(self) -> tuple[WorkerRecord, ...]:
        stats = self._stats.snapshot()
        return tuple(
            WorkerRecord(
                rank=rank,
                state=self._members.state(rank),
                node_id=info.node_id,
                pid=info.pid,
                device=info.device,
                experts=self._placement.layers_of(rank),
                routed_rows=stats.workers[rank].rows,
                num_bytes=info.num_bytes,
            )
            for rank, info in sorted(self._members.infos.items())
        )

    def stats(self) -> PoolStats:
        return self._stats.snapshot()

    def close(self) -> None:
        """Idempotent. The workers stay; they belong to whoever started them."""
        self._members.close()
        self._transport.close()

    def _send(self, dispatch: Dispatch, left_E: list[int]) -> None:
        """Sends each worker its part of the experts that are left."""
        segments = self._placement.assign(dispatch.layer, left_E, self._members.live)
        dispatch.deadline = time.monotonic() + self._options.call_timeout
        dispatch.sent = [self._send_one(dispatch, rank, segments[rank]) for rank in segments]

    def _send_one(self, dispatch: Dispatch, rank: int, segments: Sequence[tuple[int, int]]) -> Sent:
        part = cut(dispatch.x_TD, dispatch.pairs, segments)
        weights_P = part.weights_P if dispatch.form is ReplyForm.SUM else None
        call = ExpertCall(
            next(self._call_ids),
            self._epoch,
            dispatch.layer,
            part.segments,
            part.row_index,
            weights_P,
            part.x_RD,
            dispatch.wire_dtype,
            dispatch.form,
        )
        return Sent(rank, part, call, self._transport.send(rank, call), self._members.num_losses(rank))

    def _collect(self, begun: Dispatch, exchange: Exchange) -> list[tuple[Sent, ExpertReply]]:
        """Gathers once, and returns the valid replies. The others' workers are lost."""
        num_losses = self._members.num_losses
        # What a worker was sent before it was lost is not waited for, nor believed.
        current = [sent for sent in begun.sent if sent.num_losses == num_losses(sent.rank)]
        outcomes = self._transport.gather([sent.pending for sent in current], begun.deadline)
        replies = []
        for sent, outcome in zip(current, outcomes, strict=True):
            rank, call = sent.rank, sent.call
            checked = _checked(rank, call, outcome)
            if isinstance(checked, Failure):
                self._lose(rank, checked)
                continue
            num_pairs, seconds = call.num_pairs, checked.compute_seconds
            self._stats.replied(rank, num_pairs, seconds)
            exchange.replied(rank, num_pairs, seconds, call.x_RD.nbytes, checked.y_ND.nbytes)
            replies.append((sent, checked))
        if len(replies) < len(begun.sent):
            answered = {sent.rank for sent, _ in replies}
            for sent in begun.sent:
                if sent.rank not in answered:
                    exchange.failed(self._reasons[sent.rank])
        return replies

    def _lose(self, rank: int, failure: Failure) -> None:
        _log.warning("worker %d lost (%s): %s", rank, failure.reason, failure.message)
        self._members.lose(rank, failure)
        self._reasons[rank] = failure.reason
        self._stats.failed(rank, failure.reason)

    def _take_back(self, ranks: frozenset[int]) -> None:
        for rank in sorted(ranks):
            _log.info("worker %d is back", rank)
            process = _process(self._members.infos[rank])
            if process != self._processes[rank] and self._observer is not None:
                self._observer.restarted(rank, self._reasons[rank])
            self._processes[rank] = process


def _process(info: WorkerInfo) -> tuple[str, int]:
    return info.node_id, info.pid


def _record(dispatch: Dispatch, seconds: float, combine_seconds: float, exchange: Exchange) -> DispatchRecord:
    return DispatchRecord(
        layer=dispatch.layer,
        start_ns=dispatch.start_ns,
        end_ns=dispatch.start_ns + int(seconds * 1e9),
        seconds=seconds,
        combine_seconds=combine_seconds,
        bytes_sent=exchange.bytes_sent,
        bytes_received=exchange.bytes_received,
        rows=exchange.rows,
        compute_seconds=exchange.compute_seconds,
        retries=exchange.retries,
    )


def _checked(rank: int, call: ExpertCall, outcome: ExpertReply | Failure) -> ExpertReply | Failure:
    if isinstance(outcome, Failure):
        return outcome
    try:
        validate_reply(rank, call, outcome)
    except ReplyError as error:
        return Failure(FailureReason.INVALID, str(error))
    return outcome
