"""What a window's layers have of each sequence: what is found again, what is promised, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.cache.block_pool import WindowPool
from coordinator.engine.cache.block_pools import BlockPools
from coordinator.engine.cache.block_table import BlockTable
from coordinator.engine.cache.cache_sizes import CacheSizes, GroupSize
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.messages.errors import CapacityError
from coordinator.engine.messages.request import ContextOverflow, Request, StopRules
from moe_model.sampling.params import SamplingParams
from tests.cache_sizes import window_sizes
from tests.coordinator.engine.fakes import CountingRunner
from tests.models import Collected, collect, drain, make_request

COMMON = tuple(range(10, 22))


def counted(sizes: CacheSizes, max_step_tokens: int = 64) -> tuple[Engine, CountingRunner]:
    runner = CountingRunner()
    return Engine(Scheduler(sizes, 8, max_step_tokens), runner, 60), runner


def cached(result: Collected) -> int:
    return sum(o.prompt.num_cached for o in result.outputs if o.prompt is not None)


def ask(engine: Engine, name: str, prompt: tuple[int, ...], max_tokens: int = 1) -> int:
    """Tokens that were not computed again."""
    engine.submit(make_request(name, prompt, max_tokens))
    found = cached(drain(engine)[name])
    engine.check_integrity()
    return found


@pytest.mark.parametrize("window", [1, 2, 4, 5, 6, 9, 13, 40])
@pytest.mark.parametrize("max_step_tokens", [3, 64])
def test_what_is_behind_a_window_is_still_found(window: int, max_step_tokens: int) -> None:
    """The first sequence has gone far beyond what the second one has in common with it."""
    engine, _ = counted(window_sizes([None, window], 64, max_context=60), max_step_tokens)
    assert ask(engine, "first", (*COMMON, *range(30, 50)), max_tokens=9) == 0
    assert ask(engine, "second", (*COMMON, 1, 2, 3)) == 12
    assert ask(engine, "third", (*COMMON[:9], 1)) == 8


def test_what_a_window_has_lost_is_computed_again() -> None:
    """All of it is there for the layers that see everything, but not its end for those with a window."""
    sizes = CacheSizes(4, (GroupSize(64), GroupSize(19, 5)))
    engine, runner = counted(sizes)
    assert ask(engine, "first", COMMON) == 0
    # Each of the others takes 15 of the window's 19 blocks, the oldest of those that are only remembered.
    assert ask(engine, "second", tuple(range(100, 159))) == 0
    assert ask(engine, "third", tuple(range(200, 259))) == 0
    runner.steps.clear()
    assert ask(engine, "again", (*COMMON, 1)) == 0
    assert sum(step.num_tokens for step in runner.steps) == 13
    assert ask(engine, "once more", (*COMMON, 2)) == 12


def test_a_window_needs_only_its_end() -> None:
    """The beginning of a context may be gone where no later token looks at it."""
    pools = BlockPools(window_sizes([5], 0, max_context=60), 64)
    (allocator,) = pools._allocators
    keys = [bytes([n]) for n in range(6)]
    blocks = allocator.allocate(6)
    for block, key in zip(blocks, keys, strict=True):
        allocator.remember(block, key)
    assert pools.num_found(keys) == 6
    allocator.forget(blocks[:3])
    assert pools.num_found(keys) == 6
    sequence = Sequence(make_request(prompt_ids=(1,) * 26), 60, 4)
    assert pools.admit(sequence, keys)
    (table,) = sequence.tables
    assert (table.first, table.held, len(table)) == (5, blocks[5:], 6)
    pools.release(sequence)
    allocator.forget(blocks[4:5])
    assert pools.num_found(keys) == 6, "the token after 24 looks at 20 .. 24, the sixth block"
    allocator.forget(blocks[5:])
    assert pools.num_found(keys) == 4
    allocator.forget(blocks[3:4])
    assert pools.num_found(keys) == 0


def test_no_more_run_than_windows_are_promised_to() -> None:
    """Each needs 3 blocks, and a step 2 beside them."""
    engine, _ = counted(CacheSizes(4, (GroupSize(64), GroupSize(2 + 2 * 3, 5))), max_step_tokens=8)
    for n in range(4):
        engine.submit(make_request(str(n), tuple(range(20 * n, 20 * n + 12)), 5))
    results: dict[str, Collected] = {}
    for _ in range(4):
        collect(engine.step(), results)
        assert engine.stats().num_running == 2
        assert engine.stats().kv_usage == 1.0
    while engine.has_work:
        collect(engine.step(), results)
    assert {name: len(result.token_ids) for name, result in results.items()} == dict.fromkeys("0123", 5)
    assert engine.stats().kv_usage == 0.0


def test_a_pool_that_is_smaller_than_its_window_says_so() -> None:
    """Then a context has to be shorter than the window."""
    engine, _ = counted(CacheSizes(4, (GroupSize(64), GroupSize(2 + 3, 30))), max_step_tokens=8)
    assert engine.stats().kv_capacity_tokens == 12
    with pytest.raises(CapacityError, match="needs 15 tokens of KV cache, there are 12"):
        engine.submit(make_request("r", COMMON, 3))


def test_a_table_gives_up_both_ends() -> None:
    table = BlockTable(range(1, 9))
    assert sorted(table.cut(2, 6)) == [1, 2, 7, 8]
    assert (table.held, table.ids.tolist(), table.first) == ([3, 4, 5, 6], [0, 0, 3, 4, 5, 6], 2)
    assert sorted(table.cut(1, 6)) == []
    assert table.clear() == [6, 5, 4, 3]
    assert (len(table), table.first) == (0, 0)


def test_a_pool_without_room_for_a_step_is_no_pool() -> None:
    with pytest.raises(AssertionError, match="not one block beside those of a step"):
        WindowPool(16, 4, 5, 64)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 5), st.lists(st.booleans(), max_size=30))
def test_a_window_keeps_no_more_than_it_and_the_step(
    window: int, max_step_tokens: int, block_size: int, failures: list[bool]
) -> None:
    """However the steps are cut, and whichever of them fail."""
    sizes = window_sizes([window, None], 64, block_size, 3, max_step_tokens, 60)
    target = Scheduler(sizes, 3, max_step_tokens)
    for length in (50, 9, 1):
        rules = StopRules(max_tokens=1000, context_overflow=ContextOverflow.SLIDE)
        prompt = (length,) * length
        target.add(
            Sequence(Request(str(length), prompt, SamplingParams(), rules), 60, block_size, key=length)
        )
    for fails in [*failures, *[False] * 30]:
        step = target.schedule()
        target.check_integrity()
        for chunk in step.chunks:
            (whole, narrow) = sorted(chunk.sequence.tables, key=lambda table: table.first)
            assert whole.first == 0
            most = window - 1 + chunk.num_tokens + 2 * (block_size - 1)
            assert len(narrow.held) * block_size <= most
            assert narrow.first * block_size <= max(0, chunk.start - window + 1)
        if not fails:
            target.update(step, [1] * len(step.sampling))
