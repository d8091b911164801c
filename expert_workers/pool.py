"""ExpertPool: an ExpertBackend whose experts are in workers: cut, send, gather once, validate, combine.

Knows no process, no Ray and no socket: those are the transport's. `forward` and `revive` belong to one
thread; `topology` and `stats` may be asked from any. Shapes: T tokens, P pairs, D d_model, E experts.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Self

from torch import Tensor

from expert_workers.members import Expected, Members, WorkerState, introduce
from expert_workers.placement import Placement
from expert_workers.pool_stats import DispatchRecord, Exchange, PoolObserver, PoolStats, StatsRecorder
from expert_workers.slices import RowSlice, cut
from expert_workers.transport import Failure, FailureReason, Transport
from expert_workers.wire import Array, ExpertCall, ExpertReply, dtype_name, tensor_to_array, validate_reply
from expert_workers.worker import WorkerInfo
from moe_model.dispatch import Groups, combine, group_by_expert, scatter_pairs
from moe_model.errors import ReplyError
from moe_model.router import Routing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Seconds. One dispatch may take `call_timeout` for each worker that is lost on its way."""

    call_timeout: float = 10.0
    start_timeout: float = 30.0
    retry_interval: float = 0.5


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
        start_ns, started = time.time_ns(), time.perf_counter()
        self._take_back(self._members.poll())
        num_tokens, top_k = routing.expert_ids_TK.shape
        groups = group_by_expert(routing.expert_ids_TK.cpu(), self._placement.n_experts)
        x_cpu_TD = x_TD.detach().cpu().contiguous()
        y_PD = x_cpu_TD.new_empty(len(groups.order_P), x_cpu_TD.shape[1])
        exchange = Exchange()
        self._compute(layer, x_cpu_TD, groups, top_k, y_PD, exchange)
        computed = time.perf_counter()
        y_TKD = scatter_pairs(y_PD, groups.order_P, num_tokens, top_k)
        y_TD = combine(routing.weights_TK.cpu(), y_TKD).to(x_TD.device)
        ended = time.perf_counter()
        self._stats.dispatched(ended - started)
        if self._observer is not None:
            record = _record(layer, start_ns, ended - started, ended - computed, exchange)
            self._observer.dispatched(record)
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

    def _compute(
        self, layer: int, x_TD: Tensor, groups: Groups, top_k: int, y_PD: Tensor, exchange: Exchange
    ) -> None:
        """Fills y_PD, the sorted pairs, sending again to replicas what a worker did not answer."""
        dtype = dtype_name(x_TD.dtype)
        x, y = tensor_to_array(x_TD), tensor_to_array(y_PD)
        token_P = (groups.order_P // top_k).numpy()
        left_E = list(groups.counts_E)
        while any(left_E):
            segments = self._placement.assign(layer, left_E, self._members.live)
            slices = {rank: cut(x, token_P, groups.counts_E, segments[rank]) for rank in segments}
            calls = {rank: self._call(layer, part, dtype) for rank, part in slices.items()}
            for rank, reply in self._exchange(calls, exchange).items():
                _put(y, slices[rank], reply.y_PD)
                for expert, _ in slices[rank].segments:
                    left_E[expert] = 0

    def _call(self, layer: int, part: RowSlice, dtype: str) -> ExpertCall:
        index, rows = part.row_index, part.x_RD
        return ExpertCall(next(self._call_ids), self._epoch, layer, part.segments, index, rows, dtype)

    def _exchange(self, calls: Mapping[int, ExpertCall], exchange: Exchange) -> dict[int, ExpertReply]:
        """Sends all, gathers once, and returns the valid replies. The others' workers are lost."""
        deadline = time.monotonic() + self._options.call_timeout
        pendings = [self._transport.send(rank, call) for rank, call in calls.items()]
        outcomes = self._transport.gather(pendings, deadline)
        replies = {}
        for (rank, call), outcome in zip(calls.items(), outcomes, strict=True):
            checked = _checked(rank, call, outcome)
            if isinstance(checked, Failure):
                self._lose(rank, checked)
                exchange.failed(checked.reason)
            else:
                self._stats.replied(rank, call.num_pairs, checked.compute_seconds)
                sent, received = call.x_RD.nbytes, checked.y_PD.nbytes
                exchange.replied(rank, call.num_pairs, checked.compute_seconds, sent, received)
                replies[rank] = checked
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


def _record(
    layer: int, start_ns: int, seconds: float, combine_seconds: float, exchange: Exchange
) -> DispatchRecord:
    return DispatchRecord(
        layer=layer,
        start_ns=start_ns,
        end_ns=start_ns + int(seconds * 1e9),
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


def _put(y_PD: Array, part: RowSlice, reply_PD: Array) -> None:
    start = 0
    for pairs in part.pairs:
        end = start + pairs.stop - pairs.start
        y_PD[pairs] = reply_PD[start:end]
        start = end
