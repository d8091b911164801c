"""Scheduler: drafts have what nobody else needs, and leave nothing behind."""

from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.sequence import Sequence
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


def test_what_was_only_drafted_is_never_found_by_its_key() -> None:
    """A block that a wrong draft filled is no block of what the draft said."""
    target = drafting()
    first = sequence("first", 2)
    added(target, first)
    run_step(target)
    while not (step := target.schedule()).num_drafted:
        target.update(step, [1])
    target.update(step, [2])
    prompt = (*first.token_ids[:-1], *step.chunks[0].draft, 5)
    same = Sequence(Request("same", prompt, SamplingParams(), StopRules(9)), WINDOW, 4, key=next(KEYS))
    added(target, same)
    target.schedule()
    assert same.num_cached == (len(first.token_ids) - 1) // 4 * 4
