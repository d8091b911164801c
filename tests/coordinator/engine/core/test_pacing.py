"""Pace: streams beside long prompts on simulated machines, of which it knows only what their steps took."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.core.pacing import TIMES_STREAMS, Pace, _most_tokens
from coordinator.engine.core.step_costs import StepLoad, positions_seen
from tests.coordinator.engine.core.machines import (
    BLOCK,
    MACHINES,
    MAX_STEP_TOKENS,
    SLOW,
    Machine,
    Streams,
    linear,
    noisy,
)

MAX_GAP = 0.05


def alone(machine: Machine, num_tokens: int) -> float:
    """Seconds of a prompt that nobody waits for."""
    starts = range(0, num_tokens, MAX_STEP_TOKENS)
    return sum(machine(StepLoad().with_prefill(start, MAX_STEP_TOKENS)) for start in starts)


@pytest.mark.parametrize("name", MACHINES)
def test_no_gap_is_longer_than_the_bound(name: str) -> None:
    """But by what a machine takes by leaps: a tile more or less."""
    streams = Streams.started(MACHINES[name], MAX_GAP)
    for _ in range(2):
        gaps = [seconds for _, seconds in streams.prompt(8192)]
        assert max(gaps) <= MAX_GAP + (14e-3 if name == "tiled" else 2e-3)
        streams.decode(20)


@pytest.mark.parametrize("name", MACHINES)
def test_the_time_of_a_step_is_used(name: str) -> None:
    """Beside what the streams take, a prompt takes little longer than with nobody beside it."""
    machine = MACHINES[name]
    streams = Streams.started(machine, MAX_GAP)
    decode = streams.decode(1)[0]
    steps = list(streams.prompt(8192))
    spent = sum(seconds - decode for _, seconds in steps)
    assert spent <= 1.5 * alone(machine, 8192)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MACHINES)
def test_with_noise_most_gaps_are_within_the_bound(name: str, seed: int) -> None:
    streams = Streams.started(noisy(MACHINES[name], seed), MAX_GAP)
    list(streams.prompt(8192))
    streams.decode(20)
    gaps = [seconds for _, seconds in streams.prompt(8192)]
    late = sum(gap > 1.2 * MAX_GAP for gap in gaps)
    assert late <= max(1, 0.1 * len(gaps))
    assert statistics.median(gaps) >= 0.5 * MAX_GAP or name == "fast"


@pytest.mark.parametrize("name", SLOW)
def test_where_the_bound_cannot_be_held_prompts_get_on(name: str) -> None:
    """A step takes about twice what the streams take, or what a block takes."""
    machine = SLOW[name]
    streams = Streams.started(machine, MAX_GAP)
    steps = list(streams.prompt(8192))
    singles = StepLoad.of((length, 1) for length in streams.lengths)
    longest = max(TIMES_STREAMS * machine(singles), machine(singles.with_prefill(8192, BLOCK)))
    assert max(seconds for _, seconds in steps) <= 1.3 * longest
    assert sum(seconds for _, seconds in steps) <= 5 * alone(machine, 8192)


@given(
    step=st.floats(1e-5, 1.0),
    single=st.floats(1e-6, 0.1),
    token=st.floats(1e-6, 0.1),
    position=st.floats(0, 1e-5),
    max_gap=st.floats(1e-3, 1.0),
    num_streams=st.integers(1, 40),
)
def test_any_linear_machine_holds_the_bound_or_goes_by_blocks(
    step: float, single: float, token: float, position: float, max_gap: float, num_streams: int
) -> None:
    """Longer than the bound are only steps whose streams take half of it, and those with just a block."""
    machine = linear(step, single, token, position)
    streams = Streams.started(machine, max_gap, num_streams)
    list(streams.prompt(1024))
    left = 2048
    for taken, seconds in streams.prompt(2048):
        alone_ = machine(StepLoad.of((length, 1) for length in streams.lengths))
        assert taken >= min(BLOCK, left)
        assert taken <= BLOCK or seconds <= 1.1 * max(max_gap, TIMES_STREAMS * alone_)
        left -= taken
    assert left == 0


def test_a_late_chunk_is_shorter_than_a_first_one() -> None:
    streams = Streams.started(MACHINES["attention"], MAX_GAP)
    list(streams.prompt(8192))
    sizes = [taken for taken, _ in streams.prompt(8192)]
    assert max(sizes[-4:-1]) < sizes[0] / 3


def test_a_prompt_that_begins_late_is_no_surprise() -> None:
    """Its beginning came out of the prefix cache, so its first chunk looks at thousands of positions; and so
    far, to look at them cost nothing."""
    machine = linear(4e-3, 4e-4, 5e-5, 2e-7, single_position=0.0)
    streams = Streams.started(machine, MAX_GAP)
    streams.decode(3000)
    gaps = [seconds for _, seconds in streams.prompt(8192, start=7700)]
    assert max(gaps) <= 1.5 * MAX_GAP


def test_a_machine_that_becomes_slower_is_followed() -> None:
    streams = Streams.started(MACHINES["small"], MAX_GAP)
    list(streams.prompt(8192))
    slower = MACHINES["small"]
    streams.machine = lambda load: 1.8 * slower(load)
    gaps = [seconds for _, seconds in streams.prompt(8192)]
    assert max(gaps[:3]) <= 2 * MAX_GAP
    assert max(gaps[10:]) <= 1.05 * MAX_GAP


def test_prompts_share_in_their_order() -> None:
    streams = Streams.started(MACHINES["small"], MAX_GAP)
    list(streams.prompt(2048))
    first, second, third = streams.step([(0, 100), (0, 300), (0, 300)])[0]
    assert first == 100
    assert 0 < second < 300
    assert third == 0


def test_nothing_is_known_at_first() -> None:
    share = Pace(MAX_GAP, BLOCK).share(StepLoad.of([(0, 1)]))
    assert share.take(0, 9000) == BLOCK
    assert share.take(0, 9000) == 0
    unknown = Pace(MAX_GAP, BLOCK)
    unknown.observe(StepLoad.of([(0, 1), (0, 40)]), 0.01)
    assert unknown.share(StepLoad.of([(0, 1)])).take(0, 9) == 9, "the last chunk may be shorter than a block"


def seconds(most: float) -> st.SearchStrategy[float]:
    """None, or as much as a clock can tell at least; what is smaller is lost in a product of two."""
    return st.just(0.0) | st.floats(1e-12, most)


@given(st.integers(0, 10**6), seconds(10), seconds(1e-2), seconds(1e-4))
def test_most_tokens_are_the_most(start: int, most: float, per_token: float, per_position: float) -> None:
    found = _most_tokens(start, most, per_token, per_position)

    def cost(num_tokens: int) -> float:
        return num_tokens * per_token + positions_seen(start, num_tokens) * per_position

    assert cost(found) <= most * (1 + 1e-9) or found == 1 << 31
    assert found == 1 << 31 or cost(found + 1) >= most * (1 - 1e-9)
