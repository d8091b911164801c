"""The steps that place copies: fill, repair, spread over nodes, quicken layers, even memory. Pure.

None of them moves a pinned copy, but for the two that would otherwise leave a module with fewer copies, or
its copies on fewer nodes, than there could be.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from math import inf

from expert_workers.placement.placement_problem import Change, DraftPlacement
from moe_model.layers.dispatch import ExpertKey

# Times that differ by less than this part of a layer's mean are equal where a copy is placed; who holds fewer
# modules decides then.
_EQUAL = 1 / 64
# A change must quicken its workers by this part of the layer's mean, so that there is an end.
_WORTH = 1e-4
# So many of the quickest workers, the coldest redundant and the hottest modules are tried with each other.
_MAX_PARTNERS = 4
# Sums of the same times in another order may differ by this factor.
_ROUNDED = 1 + 1e-9

# The changes that could take load off a layer's slowest worker.
Step = Callable[[DraftPlacement, int, int], Iterator[Change]]


def fill(draft: DraftPlacement) -> None:
    """Gives each module the copies it lacks, the hottest first, each to the worker that is done first."""
    for layer, keys in draft.problem.layers.items():
        quantum = _EQUAL * draft.problem.mean_of(layer)
        for key in keys:
            while len(draft.holders[key]) < draft.wanted[key]:
                rank = _choose(draft, key, quantum)
                if rank is None:
                    break
                draft.put(key, (*draft.holders[key], rank))


def _choose(draft: DraftPlacement, key: ExpertKey, quantum: float) -> int | None:
    """Among equals, the worker with the fewest modules that it shares with the copies already chosen."""
    problem, held, times = draft.problem, draft.holders[key], draft.times[key[0]]
    nodes = {problem.node[rank] for rank in held}
    load = problem.load[key] / draft.wanted[key]
    first: tuple[bool, int] | None = None
    equals: list[int] = []
    for rank, speed in problem.speed.items():
        if rank not in held and draft.total[rank] < problem.room[rank]:
            score = (problem.node[rank] in nodes, round((times[rank] + load / speed) / quantum))
            if first is None or score < first:
                first, equals = score, []
            if score == first:
                equals.append(rank)
    if not equals:
        return None
    shared = draft.shared
    return min(equals, key=lambda r: (draft.total[r], sum(shared[r][other] for other in held), r))


def repair(draft: DraftPlacement) -> None:
    """Moves copies out of the way of modules that still lack one because the workers with room hold them."""
    lacking = [key for key, wanted in draft.wanted.items() if len(draft.holders[key]) < wanted]
    for key in sorted(lacking, key=lambda k: (len(draft.holders[k]), k)):
        while len(draft.holders[key]) < draft.wanted[key] and _make_room(draft, key):
            pass
    draft.settle()


def _make_room(draft: DraftPlacement, key: ExpertKey) -> bool:
    """Finds the shortest chain of moves, from a worker without the module to one with room."""
    problem = draft.problem
    came: dict[int, tuple[int, ExpertKey] | None] = {
        r: None for r in problem.speed if r not in draft.holders[key]
    }
    queue = deque(came)
    while queue:
        rank = queue.popleft()
        if draft.total[rank] < problem.room[rank]:
            while (step := came[rank]) is not None:
                giver, module = step
                draft.move(module, giver, rank)
                rank = giver
            draft.put(key, (*draft.holders[key], rank))
            return True
        for taker in problem.speed:
            if taker not in came:
                spare = _spare(draft, rank, taker)
                if spare is not None:
                    came[taker] = rank, spare
                    queue.append(taker)
    return False


def _spare(draft: DraftPlacement, giver: int, taker: int) -> ExpertKey | None:
    """A module that one worker holds and another does not; rather one that is not pinned, or is but light."""
    modules = [key for key in draft.modules_of(giver) if taker not in draft.holders[key]]
    return min(
        modules,
        key=lambda k: (
            (k, giver) in draft.pinned,
            _num_nodes_lost(draft, k, giver, taker),
            draft.problem.load[k],
            k,
        ),
        default=None,
    )


def _num_nodes_lost(draft: DraftPlacement, key: ExpertKey, giver: int, taker: int) -> int:
    held = draft.holders[key]
    return draft.problem.nodes_of(held) - draft.problem.nodes_of(_replaced(held, giver, taker))


def spread_nodes(draft: DraftPlacement) -> None:
    """Moves copies of a module that share a node to nodes that have none, where there is room."""
    problem = draft.problem
    if problem.num_nodes == 1:
        return
    for key in problem.load:
        held = draft.holders[key]
        while problem.nodes_of(held) < min(len(held), problem.num_nodes):
            change = _fastest(draft, None, _to_other_nodes(draft, key), inf)
            if change is None:
                break
            draft.apply(change)
            held = draft.holders[key]


def _to_other_nodes(draft: DraftPlacement, key: ExpertKey) -> Iterator[Change]:
    problem, held = draft.problem, draft.holders[key]
    nodes = [problem.node[rank] for rank in held]
    for giver in held:
        if nodes.count(problem.node[giver]) > 1:
            for taker in problem.speed:
                if problem.node[taker] not in nodes:
                    yield {key: _replaced(held, giver, taker)}
                    yield from _exchanges_with(draft, key, giver, taker)


def quicken(draft: DraftPlacement, layer: int, target: float, steps: Sequence[Step]) -> None:
    """Takes load off the slowest worker of a layer until it takes no more than `target`, or nothing helps.

    The first kind of step that helps is taken, and of these the one that helps most.
    """
    worth = _WORTH * draft.problem.mean_of(layer)
    for _ in range(2 * sum(len(draft.holders[key]) for key in draft.problem.layers[layer])):
        times = draft.times[layer]
        slowest = max(times, key=lambda rank: (times[rank], rank))
        if times[slowest] <= target:
            return
        for step in steps:
            change = _fastest(draft, slowest, step(draft, layer, slowest), times[slowest] - worth)
            if change is not None:
                draft.apply(change)
                break
        else:
            return


def welcome(draft: DraftPlacement, layer: int, rank: int, least: float) -> None:
    """Gives a worker modules of the slowest until it takes `least` for a layer, or nothing is quickened."""
    times, worth = draft.times[layer], _WORTH * draft.problem.mean_of(layer)
    while times[rank] < least:
        slowest = max(times, key=lambda r: (times[r], r))
        change = _fastest(draft, slowest, _moves(draft, layer, slowest, (rank,)), times[slowest] - worth)
        if change is None:
            return
        draft.apply(change)


def _fastest(
    draft: DraftPlacement, giver: int | None, changes: Iterable[Change], below: float
) -> Change | None:
    best, least = None, below
    for change in changes:
        peak = draft.peak_after(change, giver)
        if peak is not None and peak < least:
            best, least = change, peak
    return best


def _moves(
    draft: DraftPlacement, layer: int, slowest: int, takers: Collection[int] | None = None
) -> Iterator[Change]:
    times = draft.times[layer]
    for key in sorted(draft.held[layer, slowest]):
        if (key, slowest) not in draft.pinned:
            held = draft.holders[key]
            for taker in times if takers is None else takers:
                if (
                    taker not in held
                    and times[taker] + draft.charge_moved(key, slowest, taker) < times[slowest]
                ):
                    yield {key: _replaced(held, slowest, taker)}


def _other_redundancies(draft: DraftPlacement, layer: int, slowest: int) -> Iterator[Change]:
    """Takes a redundant copy from one module and gives one to a module of the slowest worker."""
    problem, partners = draft.problem, _partners(draft, layer, slowest)
    redundant = [key for key in problem.layers[layer] if len(draft.holders[key]) > problem.replicas]
    coldest = sorted(redundant, key=lambda k: (problem.load[k] / (len(draft.holders[k]) - 1), k))
    hottest = sorted(draft.held[layer, slowest], key=lambda k: (-problem.load[k] / len(draft.holders[k]), k))
    for giver in coldest[:_MAX_PARTNERS]:
        for rank in draft.holders[giver]:
            if (giver, rank) in draft.pinned:
                continue
            less = {giver: tuple(other for other in draft.holders[giver] if other != rank)}
            for key in hottest[:_MAX_PARTNERS]:
                held = draft.holders[key] if key != giver else tuple(problem.speed)
                for taker in {rank: None, **dict.fromkeys(partners)}:
                    if taker not in held:
                        yield {**less, key: (*held, taker)}


def _single_loads(draft: DraftPlacement, layer: int, slowest: int) -> Iterator[Change]:
    yield from _moves(draft, layer, slowest)
    yield from _other_redundancies(draft, layer, slowest)


def _exchanges(draft: DraftPlacement, layer: int, slowest: int) -> Iterator[Change]:
    partners = _partners(draft, layer, slowest)
    for key in sorted(draft.held[layer, slowest]):
        for partner in partners:
            if partner not in draft.holders[key]:
                charge = draft.charge(key, draft.holders[key])
                yield from _exchanges_with(draft, key, slowest, partner, charge)


def _exchanges_with(
    draft: DraftPlacement, key: ExpertKey, rank: int, partner: int, below: float = inf
) -> Iterator[Change]:
    """`key` goes from one worker to the other, something of the same layer and less charge comes back."""
    if (key, rank) in draft.pinned:
        return
    for other in sorted(draft.held[key[0], partner]):
        held = draft.holders[other]
        if rank in held or (other, partner) in draft.pinned:
            continue
        if draft.charge_moved(other, partner, rank) < below:
            yield {
                key: _replaced(draft.holders[key], rank, partner),
                other: _replaced(held, partner, rank),
            }


def _partners(draft: DraftPlacement, layer: int, slowest: int) -> list[int]:
    times = draft.times[layer]
    return sorted((rank for rank in times if rank != slowest), key=lambda r: (times[r], r))[:_MAX_PARTNERS]


def _chains(draft: DraftPlacement, layer: int, slowest: int) -> Iterator[Change]:
    """A module goes to a worker that passes another one on; for the few that are to be loaded beside many."""
    if not draft.pinned:
        return
    takers = _partners(draft, layer, slowest)
    for key in sorted(draft.held[layer, slowest]):
        if (key, slowest) in draft.pinned:
            continue
        for middle in draft.problem.speed:
            if middle in draft.holders[key]:
                continue
            for other in sorted(draft.held[layer, middle]):
                if (other, middle) not in draft.pinned:
                    for taker in takers:
                        if taker not in draft.holders[other]:
                            yield {
                                key: _replaced(draft.holders[key], slowest, middle),
                                other: _replaced(draft.holders[other], middle, taker),
                            }


STEPS: Sequence[Step] = (_moves, _exchanges, _chains)
# Where copies are loaded: the redundant ones may be of modules that are no longer hot, and to exchange two
# is to load two.
STEPS_OF_LOADED: Sequence[Step] = (_single_loads, _exchanges)


def even_memory(draft: DraftPlacement, most: float) -> None:
    """Moves modules from the worker with the most until it has `most`, if no layer gets slower by it."""
    total = draft.total
    while True:
        fullest = max(total, key=lambda rank: (total[rank], rank))
        if total[fullest] <= most:
            return
        takers = sorted((r for r in total if total[r] + 1 < total[fullest]), key=lambda r: (total[r], r))
        change = next(filter(partial(_is_harmless, draft), _lightening(draft, fullest, takers)), None)
        if change is None:
            return
        draft.apply(change)


def _is_harmless(draft: DraftPlacement, change: Change) -> bool:
    peak = draft.peak_after(change, None)
    return peak is not None and peak <= draft.time_of(next(iter(change))[0]) * _ROUNDED


def _lightening(draft: DraftPlacement, fullest: int, takers: list[int]) -> Iterator[Change]:
    room = {layer: draft.time_of(layer) * _ROUNDED for layer in draft.problem.layers}
    modules = draft.modules_of(fullest)
    for taker in takers:
        for key in modules:
            held, time = draft.holders[key], draft.times[key[0]][taker]
            if taker in held or (key, fullest) in draft.pinned:
                continue
            if time + draft.charge_moved(key, fullest, taker) <= room[key[0]]:
                yield {key: _replaced(held, fullest, taker)}
        if not draft.pinned:
            yield from _exchanged_layers(draft, fullest, taker)


def _exchanged_layers(draft: DraftPlacement, fullest: int, taker: int) -> Iterator[Change]:
    """The two workers change places in a layer, if that brings them nearer to each other."""
    between = draft.total[fullest] - draft.total[taker]
    for layer in draft.problem.layers:
        mine, others = draft.held[layer, fullest], draft.held[layer, taker]
        if 0 < len(mine) - len(others) < between:
            yield {
                key: _replaced(draft.holders[key], *((fullest, taker) if key in mine else (taker, fullest)))
                for key in sorted(mine ^ others)
            }


def _replaced(ranks: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
    return tuple(new if rank == old else rank for rank in ranks)
