"""Scheduler: drafts have what nobody else needs, and leave nothing behind."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.step import Step
from coordinator.engine.messages.request import Request, StopRules
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.core.test_scheduler import KEYS, WINDOW, added, run_step, sequence, windowed


def drafting(num_blocks: int = 32, max_step_tokens: int = 64) -> Scheduler:
    return windowed([None], num_blocks, 4, 8, max_step_tokens, most=4)


def test_drafts_come_after_single_tokens_and_fill_no_more_than_the_budget() -> None:
    target = drafting(max_step_tokens=6)
    added(target, sequence("a"), sequence("b"))
    run_step(target)
    run_step(target)
    step = run_step(target)
    assert [(c.sequence.request.request_id, c.draft) for c in step.chunks] == [("b", ()), ("a", (1, 1, 1, 1))]
    assert step.num_drafted == 4
    assert (step.load.singles, step.load.prefill) == (6, 0), "a draft is so many single tokens"


def test_a_step_with_prefill_has_no_drafts() -> None:
    target = drafting()
    added(target, sequence("a"))
    for _ in range(3):
        run_step(target)
    added(target, sequence("b", 7))
    assert run_step(target).num_drafted == 0
    assert run_step(target).num_drafted > 0


def test_no_sequence_gives_way_to_a_draft_and_its_blocks_go_back() -> None:
    """Two sequences fill two blocks: drafts would need another."""
    for num_blocks, num_drafted in ((2, 0), (3, 4)):
        target = drafting(num_blocks)
        added(target, sequence("a", 2), sequence("b", 2))
        for _ in range(2):
            run_step(target)
        assert target.schedule().num_drafted == num_drafted
        assert (target.num_preemptions, target.pools.num_free) == (0, 0)
        assert target.schedule().num_drafted == num_drafted, "a step that failed gave back what it took"

    target = drafting(num_blocks=3)
    added(target, Sequence(Request("c", (1,), SamplingParams(), StopRules(9)), WINDOW, 4, key=next(KEYS)))
    run_step(target)
    step = target.schedule()
    assert (step.num_drafted, target.pools.num_free) == (4, 1)
    target.update(step, [9])
    assert target.schedule().num_drafted == 0
    assert target.pools.num_free == 2


@dataclass
class Written:
    """A cache whose blocks hold token ids: what steps have put there."""

    tokens: dict[tuple[int, int], int] = field(default_factory=dict)

    def compute(self, step: Step) -> None:
        for chunk in step.chunks:
            for position, token_id in enumerate(chunk.token_ids, chunk.start):
                self.tokens[self._place(chunk.sequence, position)] = token_id

    def of(self, sequence: Sequence) -> list[int]:
        """What a sequence takes to be computed."""
        return [self.tokens[self._place(sequence, n)] for n in range(sequence.num_computed)]

    def _place(self, sequence: Sequence, position: int) -> tuple[int, int]:
        (table,) = sequence.tables
        return table.ids[position // 4], position % 4


def prompted(name: str, prompt: Iterable[int]) -> Sequence:
    return Sequence(Request(name, tuple(prompt), SamplingParams(), StopRules(99)), 99, 4, key=next(KEYS))


@pytest.mark.parametrize("num_right", [0, 1, 2])
def test_what_was_only_drafted_is_never_found_by_its_key(num_right: int) -> None:
    """A block that a wrong draft filled is no block of what the draft said, before it is written again and
    after; then it is one of what was drawn."""
    target, cache = drafting(), Written()
    first = prompted("first", (5, 6, 7, 8, 9, 4))
    added(target, first)

    def draw(token_id: int, *more: int) -> None:
        step = target.schedule()
        cache.compute(step)
        target.update(step, [token_id], {first.key: more} if more else {})
        assert cache.of(first) == first.token_ids[:-1], "all but the token that was drawn is computed"

    draw(5)
    step = target.schedule()
    (chunk,) = step.chunks
    assert chunk.draft == (6, 7, 8, 9), "it fills the second block, and begins the third"
    drafted = prompted("drafted", (*first.token_ids, *chunk.draft, 1))
    right = chunk.draft[:num_right]
    draw(*right, 20)
    for token_id in range(21, 26):
        draw(token_id)
    drawn = prompted("drawn", first.token_ids)
    added(target, drafted, drawn)
    target.schedule()
    assert (drafted.num_cached, drawn.num_cached) == (8 if num_right else 4, 12)
    for each in (drafted, drawn):
        assert cache.of(each) == each.token_ids[: each.num_computed]
