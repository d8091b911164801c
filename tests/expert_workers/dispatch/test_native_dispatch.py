"""What C sends and how it combines, beside what Python would: without workers, over pairs of sockets."""

import gc
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expert_workers.dispatch.assign import assign
from expert_workers.dispatch.combine import Combine
from expert_workers.dispatch.dispatch import Dispatch
from expert_workers.dispatch.native_way import HAS_NATIVE
from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.routes import LayerTable
from expert_workers.dispatch.split import RowSlice, cut
from expert_workers.transports.frame import HEADER, call_frame, decode_call, encode, reply_frame
from expert_workers.wire import Array, ExpertCall, ExpertReply, ReplyForm
from moe_model.layers.router import Routing
from tests.examples import examples

if HAS_NATIVE:
    from expert_workers.dispatch.native import _dispatch

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="built without a C compiler")

EPOCH, LAYER, TABLE, FAR = 7, 4, 1, 1e9
SOON = (60.0,) * 22
NEVER = (-1.0,) * 22


@dataclass(frozen=True)
class Case:
    """One layer's rows, and who holds which column at which cost."""

    x_TD: Tensor
    routing: Routing
    slots_C: tuple[int, ...]
    ranks_C: tuple[tuple[int, ...], ...]
    costs: Mapping[int, float]
    ranks: tuple[int, ...]
    options: PoolOptions

    @property
    def rows(self) -> Dispatch:
        experts_C = tuple(range(len(self.slots_C)))
        table = LayerTable(LAYER, experts_C, self.slots_C, self.ranks_C, has_choice=True, is_plain=False)
        return Dispatch(TABLE, table, self.x_TD, self.routing, self.options, 0, 0.0)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ranks = tuple(draw(st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True)))
    num_columns, num_tokens = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    top_k = draw(st.integers(1, num_columns))
    generator = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    holders = [
        tuple(generator.permutation(ranks)[: generator.integers(1, len(ranks) + 1)].tolist())
        for _ in range(num_columns)
    ]
    slots_C = tuple(generator.permutation(30)[:num_columns].tolist())
    costs = {rank: float(generator.choice([1.0, 1.0, 1.7, 3.25])) for rank in ranks}
    ids_TK = generator.random((num_tokens, num_columns)).argsort(axis=1)[:, :top_k].copy()
    weights_TK = generator.standard_normal((num_tokens, top_k)).astype(np.float32)
    absent_TK = generator.random((num_tokens, top_k)) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    ids_TK[absent_TK], weights_TK[absent_TK] = num_columns, 0.0
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    x_TD = torch.from_numpy(with_ties(generator, num_tokens, draw(st.integers(1, 9))))
    routing = Routing(torch.from_numpy(weights_TK), torch.from_numpy(ids_TK), torch.empty(0))
    wire_dtype, combine = draw(st.sampled_from(["float32", "bfloat16"])), draw(st.sampled_from(Combine))
    fixed_rows = draw(st.sampled_from([0.0, 0.0, 2.5, 100.0]))
    options = PoolOptions(wire_dtype=wire_dtype, combine=combine, epoch=EPOCH, fixed_rows=fixed_rows)
    return Case(x_TD.to(dtype), routing, slots_C, tuple(holders), costs, ranks, options)


def with_ties(generator: np.random.Generator, num_rows: int, width: int) -> Array:
    """Half of the values are just between two of bfloat16."""
    x_RD = generator.standard_normal((num_rows, width), np.float32)
    bits_RD, is_tie_RD = x_RD.view(np.uint32), generator.random(x_RD.shape) < 0.5
    bits_RD[is_tie_RD] = (bits_RD[is_tie_RD] & np.uint32(0xFFFF_0000)) | np.uint32(0x8000)
    return x_RD


class Lines:
    """A dispatcher with a socket to each rank, and the other ends of these."""

    def __init__(self, case: Case, stack: ExitStack) -> None:
        self.case = case
        options = case.options
        is_narrow, is_exact = options.wire_dtype == "bfloat16", options.combine is Combine.EXACT
        self.native = _dispatch.dispatcher(EPOCH, is_narrow, is_exact, True, 1, 0, options.fixed_rows)
        ranks = sorted(case.ranks)
        ours, theirs = zip(*(socket.socketpair() for _ in ranks), strict=True)
        for end in (*ours, *theirs):
            stack.enter_context(end)
            end.settimeout(2.0)
        self.peers: dict[int, socket.socket] = dict(zip(ranks, theirs, strict=True))
        places_C = tuple(tuple(map(ranks.index, each)) for each in case.ranks_C)
        links = tuple((rank, end.fileno()) for rank, end in zip(ranks, ours, strict=True))
        _dispatch.route(self.native, links, ((0, (), ()), (LAYER, case.slots_C, places_C)))
        self.pace()

    def pace(self, hedges: tuple[float, ...] = NEVER) -> None:
        costs = tuple(self.case.costs.get(rank, -1.0) for rank in sorted(self.case.ranks))
        _dispatch.pace(self.native, costs, SOON, hedges, FAR)

    def begin(self) -> int:
        x_TD, routing = self.case.x_TD, self.case.routing
        num_tokens, width = x_TD.shape
        return _dispatch.begin(
            self.native,
            TABLE,
            num_tokens,
            width,
            routing.expert_ids_TK.shape[1],
            x_TD.data_ptr(),
            x_TD.dtype == torch.bfloat16,
            routing.weights_TK.data_ptr(),
            routing.expert_ids_TK.data_ptr(),
        )

    def finish(self, number: int) -> Tensor | None:
        y_TD = torch.full_like(self.case.x_TD, torch.nan)
        return y_TD if _dispatch.finish(self.native, number, y_TD.data_ptr()) else None


@contextmanager
def lines(case: Case) -> Iterator[Lines]:
    with ExitStack() as stack:
        yield Lines(case, stack)


def received(peer: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        data += peer.recv(num_bytes - len(data))
    return data


def expected_calls(case: Case) -> dict[int, tuple[RowSlice, ExpertCall]]:
    """What calls.py would send; call ids are not known."""
    rows = case.rows
    segments, lost = assign(case.ranks_C, rows.todo_C, case.costs, case.options.fixed_rows)
    assert not lost
    calls = {}
    for rank, columns in segments.items():
        part = cut(rows.x_TD, rows.pairs, columns)
        slots = tuple((case.slots_C[column], count) for column, count in part.segments)
        weights_P = part.weights_P if rows.form is ReplyForm.SUM else None
        calls[rank] = (
            part,
            ExpertCall(
                0, EPOCH, LAYER, slots, part.row_index, weights_P, part.x_RD, rows.wire_dtype, rows.form
            ),
        )
    return calls


def reply_to(part: RowSlice, call: ExpertCall, seed: int) -> ExpertReply:
    num_rows = len(call.x_RD) if call.form is ReplyForm.SUM else len(part.weights_P)
    y_ND = with_ties(np.random.default_rng(seed), num_rows, call.x_RD.shape[1])
    # Both zeros, so that one that changes its sign shows.
    y_ND[np.abs(y_ND) < 0.2] = -0.0
    return ExpertReply(call.call_id, EPOCH, LAYER, call.tag, y_ND, 0.25)


def same_bits(a: Tensor, b: Tensor) -> bool:
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and torch.equal(a.view(kind), b.view(kind))


@settings(deadline=None, max_examples=examples(150))
@given(cases())
def test_frames_and_sums_are_those_of_python_to_the_last_bit(case: Case) -> None:
    calls, combiner = expected_calls(case), case.rows.combiner()
    with lines(case) as world:
        number = world.begin()
        assert number > 0
        replies = {}
        for rank, (part, call) in calls.items():
            expected = encode(call_frame(call))
            frame = received(world.peers[rank], len(expected))
            sent = call._replace(call_id=decode_call(frame).call_id)
            assert frame == encode(call_frame(sent))
            replies[rank] = reply_to(part, sent, rank)
        for rank in reversed(replies):
            world.peers[rank].sendall(encode(reply_frame(replies[rank])))
        y_TD = world.finish(number)
        for rank, (part, _) in calls.items():
            combiner.add(part, replies[rank].y_ND.copy())
        assert y_TD is not None
        assert same_bits(y_TD, combiner.result().to(case.x_TD.dtype))
        check_told(world, case, calls)


def check_told(world: Lines, case: Case, calls: Mapping[int, tuple[RowSlice, ExpertCall]]) -> None:
    """It is counted and told of once, as Python would."""
    num_dispatches, seconds, workers, loads = _dispatch.take_counts(world.native)
    num_pairs = {rank: len(part.weights_P) for rank, (part, _) in calls.items()}
    assert (num_dispatches, seconds > 0) == (1, True)
    assert sorted(workers) == [(rank, 1, num_pairs[rank], 0.25) for rank in sorted(calls)]
    counts = {slot: n for slot, n in zip(case.slots_C, case.rows.pairs.counts_E, strict=True) if n}
    assert {(layer, slot): n for layer, slot, n in loads} == {(LAYER, slot): n for slot, n in counts.items()}
    [(layer, _, seconds, combining, sent, _, rows, computing)] = _dispatch.take_records(world.native)
    assert (layer, rows, computing) == (LAYER, num_pairs, dict.fromkeys(calls, 0.25))
    assert 0 <= combining <= seconds
    assert sent == sum(call.x_RD.nbytes for _, call in calls.values())
    sizes = {r: n + int(case.options.fixed_rows * len(calls[r][0].segments)) for r, n in num_pairs.items()}
    assert {(rank, size) for rank, size, _ in _dispatch.take_samples(world.native)} == set(sizes.items())
    assert _dispatch.take_counts(world.native) == (0, 0.0, [], [])
    assert not _dispatch.take_records(world.native)
    assert not _dispatch.take_samples(world.native)


def plain(num_tokens: int = 3, ranks: Sequence[int] = (0, 1), width: int = 4) -> Case:
    """Every token goes to one column of each rank."""
    ids_TK = torch.arange(len(ranks)).expand(num_tokens, -1).contiguous()
    routing = Routing(torch.ones(num_tokens, len(ranks)), ids_TK, torch.empty(0))
    holders = tuple((rank,) for rank in ranks)
    return Case(
        torch.randn(num_tokens, width),
        routing,
        tuple(range(len(ranks))),
        holders,
        dict.fromkeys(ranks, 1.0),
        tuple(ranks),
        PoolOptions(epoch=EPOCH),
    )


def test_a_column_that_nobody_may_compute_is_for_python() -> None:
    case = plain()
    with lines(case) as world:
        _dispatch.pace(world.native, (1.0, -1.0), SOON, NEVER, FAR)
        assert world.begin() == 0
        assert _dispatch.num_flights(world.native) == 0
        world.peers[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            world.peers[0].recv(1)


@pytest.mark.parametrize("column", [-1, 3, 1 << 40])
def test_an_id_that_is_no_column_is_for_python(column: int) -> None:
    case = plain()
    case.routing.expert_ids_TK[1, 0] = column
    with lines(case) as world:
        assert world.begin() == 0


def test_nothing_begins_once_it_is_stopped_or_costs_are_due() -> None:
    with lines(plain()) as world:
        _dispatch.stop(world.native)
        assert world.begin() == 0
        _dispatch.go(world.native)
        _dispatch.pace(world.native, (1.0, 1.0), SOON, NEVER, 0.0)
        assert world.begin() == 0
        world.pace()
        assert world.begin() > 0


def test_what_is_on_its_way_is_handed_over_with_all_that_was_sent_and_read() -> None:
    case = plain()
    calls = expected_calls(case)
    with lines(case) as world:
        number = world.begin()
        assert number > 0
        frames = {
            rank: received(peer, len(encode(call_frame(calls[rank][1]))))
            for rank, peer in world.peers.items()
        }
        whole = {
            rank: encode(
                reply_frame(reply_to(*calls[rank], rank)._replace(call_id=decode_call(frame).call_id))
            )
            for rank, frame in frames.items()
        }
        # One is there, the other breaks off within its rows.
        world.peers[0].sendall(whole[0])
        world.peers[1].sendall(whole[1][: HEADER.size + 5])
        world.peers[1].shutdown(socket.SHUT_WR)
        assert world.finish(number) is None
        [(got_number, start_ns, started, hedge_at, handed)] = _dispatch.hand_over(world.native)
        assert (got_number, hedge_at) == (number, None)
        assert start_ns > 0
        for rank, call_id, began, deadline, columns, num_bytes, unsent, read, _ in handed:
            assert call_id == decode_call(frames[rank]).call_id
            assert started <= began < deadline
            assert (columns, unsent) == (((rank, 3),), b"")
            assert num_bytes == len(whole[rank]) - HEADER.size
            assert read == (whole[0] if rank == 0 else whole[1][: HEADER.size + 5])
        assert len(handed) == 2
        assert _dispatch.num_flights(world.native) == 0
        assert world.finish(number) is None
        assert _dispatch.take_counts(world.native)[0] == 0


def test_what_a_socket_does_not_take_is_handed_over_and_nothing_is_sent_after_it() -> None:
    case = plain(num_tokens=40, ranks=(0,), width=256)
    [(_, call)] = expected_calls(case).values()
    with lines(case) as world:
        numbers = []
        while number := world.begin():
            numbers.append(number)
        assert world.finish(numbers[0]) is None
        handed = _dispatch.hand_over(world.native)
        assert [flight[0] for flight in handed] == numbers
        *whole, last = [unsent for *_, calls in handed for *_, unsent, _, _ in calls]
        assert not any(whole)
        assert last
        size = len(encode(call_frame(call)))
        stream = received(world.peers[0], size * len(numbers) - len(last)) + last
        sent = [decode_call(stream[at : at + size]) for at in range(0, len(stream), size)]
        assert len({each.call_id for each in sent}) == len(numbers)
        assert all((each.x_RD == call.x_RD).all() for each in sent)


def test_a_wait_ends_at_the_time_to_hedge() -> None:
    case = plain()
    doubled = Case(**{**case.__dict__, "ranks_C": ((0, 1), (1, 0))})
    with lines(doubled) as world:
        world.pace(hedges=(0.03,) * 22)
        number = world.begin()
        assert world.finish(number) is None
        [(_, _, started, hedge_at, _)] = _dispatch.hand_over(world.native)
        assert hedge_at is not None
        assert 0.03 <= hedge_at - started < 5


def test_routes_do_not_change_under_what_is_on_its_way() -> None:
    with lines(plain()) as world:
        world.begin()
        with pytest.raises(ValueError, match="1 dispatches are on their way"):
            _dispatch.route(world.native, (), ())


@pytest.mark.parametrize(
    ("links", "layers"),
    [
        (((0,),), ()),
        (((0, "x"),), ()),
        (((-1, 0),), ()),
        (((0, 0),), ((0, (0,), ((1,),)),)),
        (((0, 0),), ((0, (0, 1), ((0,),)),)),
        (((0, 0),), ((0, (1 << 40,), ((0,),)),)),
        (((0, 0),), ((0, (0,), (0,)),)),
        (((0, 0),), (("x", (0,), ((0,),)),)),
        (((0, 0),), (((0,), ((0,),)),)),
        (((0, 0),), ((0, 0, 0),)),
    ],
)
def test_routes_that_make_no_sense_are_refused(links: object, layers: object) -> None:
    native = _dispatch.dispatcher(0, False, True, False, 1, 0)
    with pytest.raises((ValueError, TypeError, OverflowError)):
        _dispatch.route(native, links, layers)  # type: ignore[arg-type]


def test_counts_are_taken_while_the_garbage_collector_has_others_take_them() -> None:
    # In a process of its own: were anything of Python's made under the lock, it would never end.
    code = f"from {__name__} import take_counts_amid_garbage as take; take()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def take_counts_amid_garbage() -> None:
    num_columns = 16
    routing = Routing(
        torch.ones(num_columns, 1), torch.arange(num_columns).reshape(num_columns, 1), torch.empty(0)
    )
    slots_C, ranks_C = tuple(range(num_columns)), ((0,),) * num_columns
    case = Case(
        torch.ones(num_columns, 4), routing, slots_C, ranks_C, {0: 1.0}, (0,), PoolOptions(epoch=EPOCH)
    )
    with lines(case) as world:
        number = world.begin()
        ((part, call),) = expected_calls(case).values()
        frame = received(world.peers[0], len(encode(call_frame(call))))
        sent = call._replace(call_id=decode_call(frame).call_id)
        world.peers[0].sendall(encode(reply_frame(reply_to(part, sent, 0))))
        assert world.finish(number) is not None

        def others_take(phase: str, _: object) -> None:
            other = threading.Thread(target=_dispatch.take_counts, args=(world.native,))
            other.start()
            other.join()

        gc.callbacks.append(others_take)
        gc.set_threshold(1, 1, 1)
        found = _dispatch.take_counts(world.native)
        gc.set_threshold(0)
        gc.callbacks.clear()
    assert len(found[3]) == num_columns
