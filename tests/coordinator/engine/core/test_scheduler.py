"""Scheduler: budgets, fairness, preemption, and that nothing is ever lost. No model anywhere."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.core.pacing import Pace
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.speculation import Speculation
from coordinator.engine.core.step import Step
from coordinator.engine.messages.request import ContextOverflow, Request, StopRules
from moe_model.sampling.params import SamplingParams
from tests.cache_sizes import whole_sizes, window_sizes

WINDOW = 12
# Of groups of layers.
WINDOWS = st.lists(st.sampled_from([None, 1, 2, 5, 8, 30]), min_size=1, max_size=3, unique=True)
# Seconds, where a token takes a millisecond: from one that nothing fits to one that all fits.
MAX_GAP = st.sampled_from([None, 1e-6, 5e-3, 1.0])
# Tokens of a draft.
MOST = st.sampled_from([None, 1, 6])
# Different prompts, without token 1, so that nothing is shared; what sharing does is test_prefix_cache.py's.
KEYS = count(1)


def scheduler(
    num_blocks: int = 32, block_size: int = 4, max_num_seqs: int = 8, max_step_tokens: int = 64
) -> Scheduler:
    return Scheduler(whole_sizes(num_blocks, block_size), max_num_seqs, max_step_tokens)


def windowed(
    windows: Seq[int | None],
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    max_step_tokens: int,
    max_gap: float | None = None,
    most: int | None = None,
) -> Scheduler:
    """Windows get what fewer sequences need than may run, so that
    they are full as well. `most`: tokens of a draft."""
    few = max(1, max_num_seqs - 2)
    sizes = window_sizes(windows, num_blocks, block_size, few, max_step_tokens, WINDOW)
    pace = None if max_gap is None else Pace(max_gap, block_size)
    speculation = None if most is None else Speculation(most, is_measured=False)
    return Scheduler(sizes, max_num_seqs, max_step_tokens, pace=pace, speculation=speculation)


def paced(max_gap: float, max_num_seqs: int = 64) -> Scheduler:
    return Scheduler(whole_sizes(4096, 16), max_num_seqs, 512, pace=Pace(max_gap, 16))


def long_sequence(name: str, prompt_len: int, prompt: tuple[int, ...] | None = None) -> Sequence:
    first = 100_000 * next(KEYS)
    ids = prompt or tuple(range(first, first + prompt_len))
    return Sequence(Request(name, ids, SamplingParams(), StopRules(max_tokens=1000)), 50_000, 16, key=first)


def sequence(name: str, prompt_len: int = 3) -> Sequence:
    rules = StopRules(max_tokens=1000, context_overflow=ContextOverflow.SLIDE)
    first = 1000 * next(KEYS)
    prompt = tuple(range(first, first + prompt_len))
    return Sequence(Request(name, prompt, SamplingParams(), rules), WINDOW, 4, key=first)


def added(target: Scheduler, *sequences: Sequence) -> None:
    for each in sequences:
        target.add(each)


def run_step(target: Scheduler) -> Step:
    """One step in which every sequence that can draws token 1, and again as far as its draft was right: not
    at all, in part, or to its end. A token takes 1 ms."""
    step = target.schedule()
    check(target, step)
    further = {
        chunk.sequence.key: [1] * (len(chunk.sequence.token_ids) % (len(chunk.draft) + 1))
        for chunk in step.sampling
        if chunk.draft
    }
    before = {chunk.sequence.key: len(chunk.sequence.token_ids) for chunk in step.sampling}
    target.update(step, [1] * len(step.sampling), further)
    for chunk in step.sampling:
        sequence = chunk.sequence
        num_new = len(sequence.token_ids) - before[sequence.key]
        assert num_new == 1 + len(further.get(sequence.key, ()))
        assert not chunk.draft or sequence.num_remaining in (1, WINDOW), (
            "all but the last, or a window that slid"
        )
    target.took(step, 1e-3 * step.num_tokens, len(step.sampling))
    return step


def check(target: Scheduler, step: Step) -> None:
    target.check_integrity()
    assert len({id(chunk.sequence) for chunk in step.chunks}) == len(step.chunks)
    for chunk in step.chunks:
        assert chunk.sequence in target.running
        assert chunk.start == chunk.sequence.num_computed
        assert 1 <= chunk.num_known <= chunk.sequence.num_remaining
        assert chunk.samples == (chunk.num_known == chunk.sequence.num_remaining)
        assert chunk.sequence.context_len + len(chunk.draft) <= WINDOW or not chunk.draft
        needed = chunk.start + chunk.num_tokens
        for table in chunk.sequence.tables:
            assert needed <= len(table) * target.pools.block_size
            assert all(table.held), "a place without a block"


def shape(step: Step) -> list[tuple[str, int, int, bool]]:
    return [(c.sequence.request.request_id, c.start, c.num_tokens, c.samples) for c in step.chunks]


def test_a_prompt_in_one_step_then_single_tokens() -> None:
    target = scheduler()
    added(target, sequence("a", 5))
    assert shape(run_step(target)) == [("a", 0, 5, True)]
    assert shape(run_step(target)) == [("a", 5, 1, True)]
    assert shape(run_step(target)) == [("a", 6, 1, True)]


def test_a_long_prompt_goes_in_chunks_within_the_budget() -> None:
    target = scheduler(max_step_tokens=5)
    added(target, sequence("a", 12))
    shapes = [shape(run_step(target))[0] for _ in range(3)]
    assert shapes == [("a", 0, 5, False), ("a", 5, 5, False), ("a", 10, 2, True)]


def test_single_tokens_go_first_and_chunks_share_the_rest() -> None:
    target = scheduler(max_step_tokens=10)
    added(target, sequence("a"))
    run_step(target)
    added(target, sequence("b", 7), sequence("c", 8))
    assert shape(run_step(target)) == [("a", 3, 1, True), ("b", 0, 7, True), ("c", 0, 2, False)]
    assert shape(run_step(target)) == [("a", 4, 1, True), ("b", 7, 1, True), ("c", 2, 6, True)]


def test_a_step_that_failed_can_be_scheduled_again() -> None:
    """`schedule` only reserves: without `update` the next step has the same work."""
    target = scheduler(max_step_tokens=6)
    added(target, sequence("a", 5), sequence("b", 9))
    first = target.schedule()
    again = target.schedule()
    assert {(c.sequence.request.request_id, c.start) for c in again.chunks} <= {("a", 0), ("b", 0)}
    assert all(c.sequence.num_computed == 0 for c in [*first.chunks, *again.chunks])


def test_sliding_recomputes_the_window_and_keeps_its_blocks() -> None:
    target = scheduler()
    slider = sequence("a", WINDOW)
    added(target, slider)
    run_step(target)
    blocks = slider.tables[0].held
    for start in range(1, 4):
        assert slider.window_start == start
        assert shape(run_step(target)) == [("a", 0, WINDOW, True)]
        assert slider.tables[0].held == blocks


def test_the_youngest_gives_way_and_comes_back_in_order() -> None:
    target = scheduler(num_blocks=3, block_size=4)
    names = ("a", "b", "c")
    added(target, *(sequence(name, 4) for name in names))
    run_step(target)
    assert [s.request.request_id for s in target.running] == ["a", "b", "c"]
    run_step(target)
    assert [s.request.request_id for s in target.running] == ["a"]
    assert [s.request.request_id for s in target.waiting] == ["b", "c"]
    assert target.num_preemptions == 2
    assert [s.num_computed for s in target.waiting] == [0, 0]
    assert [len(s.token_ids) for s in target.waiting] == [5, 5], "a drawn token is never drawn again"
    target.remove(target.running[0])
    run_step(target)
    assert [s.request.request_id for s in target.running] == ["b"]


def test_a_later_small_one_does_not_overtake_a_large_one() -> None:
    target = scheduler(num_blocks=4, block_size=4)
    added(target, sequence("a", 8), sequence("large", 12), sequence("small", 1))
    run_step(target)
    assert [s.request.request_id for s in target.running] == ["a"]
    assert [s.request.request_id for s in target.waiting] == ["large", "small"]


def test_no_more_run_than_allowed() -> None:
    target = scheduler(max_num_seqs=2)
    added(target, *(sequence(str(n)) for n in range(5)))
    run_step(target)
    assert (len(target.running), len(target.waiting)) == (2, 3)


@pytest.mark.parametrize("max_step_tokens", [1, 2, 3, 5, 9])
def test_single_tokens_never_starve_a_chunk(max_step_tokens: int) -> None:
    """However small the budget and whoever arrives: a running sequence computes something all the time."""
    target = scheduler(num_blocks=200, max_num_seqs=8, max_step_tokens=max_step_tokens)
    long = sequence("long", 12)
    added(target, *(sequence(f"s{n}", 1) for n in range(7)), long)
    idle = 0
    for step_number in range(400):
        step = run_step(target)
        for chunk in step.chunks:
            short = chunk.sequence is not long
            if short and chunk.sequence.num_output_tokens >= 5:
                target.remove(chunk.sequence)
                added(target, sequence(f"t{step_number}", 1))
        if long in target.running:
            idle = 0 if any(c.sequence is long for c in step.chunks) else idle + 1
            assert idle <= 1
    assert long.num_output_tokens >= 3


@pytest.mark.parametrize("num_sliders", [1, 3])
def test_sliding_sequences_starve_neither_others_nor_each_other(num_sliders: int) -> None:
    target = scheduler(num_blocks=64, max_num_seqs=6, max_step_tokens=9)
    sliders = [sequence(f"slide{n}", WINDOW) for n in range(num_sliders)]
    short = sequence("short", 2)
    added(target, *sliders, short)
    for _ in range(40):
        run_step(target)
        if short.num_output_tokens == 8:
            break
    assert short.num_output_tokens == 8
    for _ in range(12 * num_sliders):
        run_step(target)
    counts = [slider.num_output_tokens for slider in sliders]
    assert min(counts) > 0
    assert max(counts) <= 2 * min(counts)


def test_chunks_beside_streams_are_as_long_as_the_bound_allows() -> None:
    target = paced(max_gap=0.05)
    added(target, *(long_sequence(f"s{n}", 20) for n in range(10)))
    for _ in range(5):
        run_step(target)
    added(target, long_sequence("long", 5000))
    sizes = [run_step(target).num_tokens for _ in range(100)]
    assert max(sizes) <= 51
    assert sum(sizes[20:]) / len(sizes[20:]) >= 45


def test_without_streams_a_prompt_has_the_whole_budget() -> None:
    target = paced(max_gap=0.05)
    added(target, long_sequence("a", 2000))
    assert [run_step(target).num_tokens for _ in range(3)] == [512] * 3


def test_what_comes_out_of_the_prefix_cache_takes_no_time_of_a_step() -> None:
    target = paced(max_gap=0.05)
    first = long_sequence("first", 1600)
    added(target, first)
    while first.num_output_tokens < 3:
        run_step(target)
    prompt = first.token_ids[:1600]
    again = long_sequence("again", 0, (*prompt, *range(30)))
    added(target, again)
    assert shape(run_step(target)) == [("first", 1602, 1, True), ("again", 1600, 30, True)]


def test_short_prompts_that_keep_coming_do_not_starve_a_long_one() -> None:
    """Each of them takes all that there is time for; the long one has its turn like each that runs."""
    target = paced(max_gap=0.05, max_num_seqs=8)
    stream, long = long_sequence("stream", 20), long_sequence("long", 1000)
    added(target, stream)
    for _ in range(5):
        run_step(target)
    added(target, long)
    waits = 0
    for number in range(400):
        added(target, long_sequence(f"short{number}", 48))
        step = run_step(target)
        for chunk in step.sampling:
            if chunk.sequence not in (stream, long):
                target.remove(chunk.sequence)
        waits = 0 if any(chunk.sequence is long for chunk in step.chunks) else waits + 1
        assert waits < 8
        if long.num_output_tokens:
            return
    raise AssertionError("it has not been computed")


@dataclass
class History:
    """What a hypothesis run has done so far."""

    target: Scheduler
    alive: list[Sequence] = field(default_factory=list)
    num_added: int = 0


@given(
    num_blocks=st.integers(3, 14),
    block_size=st.integers(4, 5),
    max_num_seqs=st.integers(1, 6),
    max_step_tokens=st.integers(1, 20),
    windows=WINDOWS,
    max_gap=MAX_GAP,
    most=MOST,
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 20)),
            st.tuples(st.just("remove"), st.integers(0, 20)),
            st.tuples(st.just("step"), st.integers(1, 4)),
            st.tuples(st.just("fail"), st.just(0)),
        ),
        max_size=40,
    ),
)
def test_any_history_loses_nothing_and_makes_progress(
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    max_step_tokens: int,
    windows: list[int | None],
    max_gap: float | None,
    most: int | None,
    moves: list[tuple[str, int]],
) -> None:
    history = History(windowed(windows, num_blocks, block_size, max_num_seqs, max_step_tokens, max_gap, most))
    for kind, number in moves:
        _move(history, kind, number)
        history.target.check_integrity()
        assert {id(s) for s in history.alive} == {
            id(s) for s in [*history.target.running, *history.target.waiting]
        }
    for each in list(history.alive):
        history.target.remove(each)
    history.target.check_integrity()
    assert history.target.pools.num_free == history.target.pools.num_blocks
    assert (history.target.running, list(history.target.waiting)) == ([], [])


def _move(history: History, kind: str, number: int) -> None:
    target, alive = history.target, history.alive
    if kind == "add":
        alive.append(sequence(str(history.num_added), number))
        target.add(alive[-1])
        history.num_added += 1
    elif kind == "remove" and alive:
        target.remove(alive.pop(number % len(alive)))
    elif kind == "fail" and alive:
        check(target, target.schedule())
    elif kind == "step" and alive:
        for _ in range(number):
            assert run_step(target).chunks, "there is work and none was scheduled"


@given(
    st.integers(3, 9),
    st.integers(1, 14),
    WINDOWS,
    MAX_GAP,
    MOST,
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
)
def test_everyone_finishes(
    num_blocks: int,
    max_step_tokens: int,
    windows: list[int | None],
    max_gap: float | None,
    most: int | None,
    prompt_lens: list[int],
) -> None:
    target = windowed(windows, num_blocks, 4, 8, max_step_tokens, max_gap, most)
    left = [sequence(str(n), length) for n, length in enumerate(prompt_lens)]
    added(target, *left)
    for _ in range(3000):
        if not left:
            break
        for chunk in run_step(target).sampling:
            if chunk.sequence.num_output_tokens >= 6:
                left.remove(chunk.sequence)
                target.remove(chunk.sequence)
    assert not left
    assert target.pools.num_free == target.pools.num_blocks
