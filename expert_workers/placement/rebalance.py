"""The steps that place copies: fill, repair, spread over nodes, quicken layers, even memory. Pure.

None of them moves a pinned copy, but for the two that would otherwise leave a module with fewer copies, or
its copies on fewer nodes, than there could be.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from math import inf

from expert_workers.placement.placement_problem import Change, Copies
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
Step = Callable[[Copies, int, int], Iterator[Change]]


def fill(copies: Copies) -> None:
    """Gives each module the copies it lacks, the hottest first, each to the worker that is done first."""
    for layer, keys in copies.problem.layers.items():
        quantum = _EQUAL * copies.problem.mean_of(layer)
        for key in keys:
            while len(copies.holders[key]) < copies.wanted[key]:
                rank = _choose(copies, key, quantum)
                if rank is None:
                    break
                copies.put(key, (*copies.holders[key], rank))


def _choose(copies: Copies, key: ExpertKey, quantum: float) -> int | None:
    """Among equals, the worker with the fewest modules that it shares with the copies already chosen."""
    problem, held, times = copies.problem, copies.holders[key], copies.times[key[0]]
    nodes = {problem.node[rank] for rank in held}
    load = problem.load[key] / copies.wanted[key]
    first: tuple[bool, int] | None = None
    equals: list[int] = []
    for rank, speed in problem.speed.items():
        if rank not in held and copies.total[rank] < problem.room[rank]:
            score = (problem.node[rank] in nodes, round((times[rank] + load / speed) / quantum))
            if first is None or score < first:
                first, equals = score, []
            if score == first:
                equals.append(rank)
    if not equals:
        return None
    shared = copies.shared
    return min(equals, key=lambda r: (copies.total[r], sum(shared[r][other] for other in held), r))


def repair(copies: Copies) -> None:
    """Moves copies out of the way of modules that still lack one because the workers with room hold them."""
    lacking = [key for key, wanted in copies.wanted.items() if len(copies.holders[key]) < wanted]
    for key in sorted(lacking, key=lambda k: (len(copies.holders[k]), k)):
        while len(copies.holders[key]) < copies.wanted[key] and _make_room(copies, key):
            pass
    copies.settle()


def _make_room(copies: Copies, key: ExpertKey) -> bool:
    """Finds the shortest chain of moves, from a worker without the module to one with room."""
    problem = copies.problem
    came: dict[int, tuple[int, ExpertKey] | None] = {
        r: None for r in problem.speed if r not in copies.holders[key]
    }
    queue = deque(came)
    while queue:
        rank = queue.popleft()
        if copies.total[rank] < problem.room[rank]:
            while (step := came[rank]) is not None:
                giver, module = step
                copies.move(module, giver, rank)
                rank = giver
            copies.put(key, (*copies.holders[key], rank))
            return True
        for taker in problem.speed:
            if taker not in came:
                spare = _spare(copies, rank, taker)
                if spare is not None:
                    came[taker] = rank, spare
                    queue.append(taker)
    return False


def _spare(copies: Copies, giver: int, taker: int) -> ExpertKey | None:
    """A module that one worker holds and another does not; rather one that is not pinned, or is but light."""
    modules = [key for key in copies.modules_of(giver) if taker not in copies.holders[key]]
    return min(
        modules,
        key=lambda k: (
            (k, giver) in copies.pinned,
            _num_nodes_lost(copies, k, giver, taker),
            copies.problem.load[k],
            k,
        ),
        default=None,
    )


def _num_nodes_lost(copies: Copies, key: ExpertKey, giver: int, taker: int) -> int:
    held = copies.holders[key]
    return copies.problem.nodes_of(held) - copies.problem.nodes_of(_replaced(held, giver, taker))


def spread_nodes(copies: Copies) -> None:
    """Moves copies of a module that share a node to nodes that have none, where there is room."""
    problem = copies.problem
    if problem.num_nodes == 1:
        return
    for key in problem.load:
        held = copies.holders[key]
        while problem.nodes_of(held) < min(len(held), problem.num_nodes):
            change = _fastest(copies, None, _to_other_nodes(copies, key), inf)
            if change is None:
                break
            copies.apply(change)
            held = copies.holders[key]


def _to_other_nodes(copies: Copies, key: ExpertKey) -> Iterator[Change]:
    problem, held = copies.problem, copies.holders[key]
    nodes = [problem.node[rank] for rank in held]
    for giver in held:
        if nodes.count(problem.node[giver]) > 1:
            for taker in problem.speed:
                if problem.node[taker] not in nodes:
                    yield {key: _replaced(held, giver, taker)}
                    yield from _exchanges_with(copies, key, giver, taker)


def quicken(copies: Copies, layer: int, target: float, steps: Sequence[Step]) -> None:
    """Takes load off the slowest worker of a layer until it takes no more than `target`, or nothing helps.

    The first kind of step that helps is taken, and of these the one that helps most.
    """
    worth = _WORTH * copies.problem.mean_of(layer)
    for _ in range(2 * sum(len(copies.holders[key]) for key in copies.problem.layers[layer])):
        times = copies.times[layer]
        slowest = max(times, key=lambda rank: (times[rank], rank))
        if times[slowest] <= target:
            return
        for step in steps:
            change = _fastest(copies, slowest, step(copies, layer, slowest), times[slowest] - worth)
            if change is not None:
                copies.apply(change)
                break
        else:
            return


def welcome(copies: Copies, layer: int, rank: int, least: float) -> None:
    """Gives a worker modules of the slowest until it takes `least` for a layer, or nothing is quickened."""
    times, worth = copies.times[layer], _WORTH * copies.problem.mean_of(layer)
    while times[rank] < least:
        slowest = max(times, key=lambda r: (times[r], r))
        change = _fastest(copies, slowest, _moves(copies, layer, slowest, (rank,)), times[slowest] - worth)
        if change is None:
            return
        copies.apply(change)


def _fastest(copies: Copies, giver: int | None, changes: Iterable[Change], below: float) -> Change | None:
    best, least = None, below
    for change in changes:
        peak = copies.peak_after(change, giver)
        if peak is not None and peak < least:
            best, least = change, peak
    return best


def _moves(
    copies: Copies, layer: int, slowest: int, takers: Collection[int] | None = None
) -> Iterator[Change]:
    times = copies.times[layer]
    for key in sorted(copies.held[layer, slowest]):
        if (key, slowest) not in copies.pinned:
            held = copies.holders[key]
            for taker in times if takers is None else takers:
                if (
                    taker not in held
                    and times[taker] + copies.charge_moved(key, slowest, taker) < times[slowest]
                ):
                    yield {key: _replaced(held, slowest, taker)}


def _other_redundancies(copies: Copies, layer: int, slowest: int) -> Iterator[Change]:
    """Takes a redundant copy from one module and gives one to a module of the slowest worker."""
    problem, partners = copies.problem, _partners(copies, layer, slowest)
    redundant = [key for key in problem.layers[layer] if len(copies.holders[key]) > problem.goal]
    coldest = sorted(redundant, key=lambda k: (problem.load[k] / (len(copies.holders[k]) - 1), k))
    hottest = sorted(
        copies.held[layer, slowest], key=lambda k: (-problem.load[k] / len(copies.holders[k]), k)
    )
    for giver in coldest[:_MAX_PARTNERS]:
        for rank in copies.holders[giver]:
            if (giver, rank) in copies.pinned:
                continue
            less = {giver: tuple(other for other in copies.holders[giver] if other != rank)}
            for key in hottest[:_MAX_PARTNERS]:
                held = copies.holders[key] if key != giver else tuple(problem.speed)
                for taker in {rank: None, **dict.fromkeys(partners)}:
                    if taker not in held:
                        yield {**less, key: (*held, taker)}


def _single_loads(copies: Copies, layer: int, slowest: int) -> Iterator[Change]:
    yield from _moves(copies, layer, slowest)
    yield from _other_redundancies(copies, layer, slowest)


def _exchanges(copies: Copies, layer: int, slowest: int) -> Iterator[Change]:
    partners = _partners(copies, layer, slowest)
    for key in sorted(copies.held[layer, slowest]):
        for partner in partners:
            if partner not in copies.holders[key]:
                charge = copies.charge(key, copies.holders[key])
                yield from _exchanges_with(copies, key, slowest, partner, charge)


def _exchanges_with(
    copies: Copies, key: ExpertKey, rank: int, partner: int, below: float = inf
) -> Iterator[Change]:
    """`key` goes from one worker to the other, something of the same layer and less charge comes back."""
    if (key, rank) in copies.pinned:
        return
    for other in sorted(copies.held[key[0], partner]):
        held = copies.holders[other]
        if rank in held or (other, partner) in copies.pinned:
            continue
        if copies.charge_moved(other, partner, rank) < below:
            yield {
                key: _replaced(copies.holders[key], rank, partner),
                other: _replaced(held, partner, rank),
            }


def _partners(copies: Copies, layer: int, slowest: int) -> list[int]:
    times = copies.times[layer]
    return sorted((rank for rank in times if rank != slowest), key=lambda r: (times[r], r))[:_MAX_PARTNERS]


def _chains(copies: Copies, layer: int, slowest: int) -> Iterator[Change]:
    """A module goes to a worker that passes another one on; for the few that are to be loaded beside many."""
    if not copies.pinned:
        return
    takers = _partners(copies, layer, slowest)
    for key in sorted(copies.held[layer, slowest]):
        if (key, slowest) in copies.pinned:
            continue
        for middle in copies.problem.speed:
            if middle in copies.holders[key]:
                continue
            for other in sorted(copies.held[layer, middle]):
                if (other, middle) not in copies.pinned:
                    for taker in takers:
                        if taker not in copies.holders[other]:
                            yield {
                                key: _replaced(copies.holders[key], slowest, middle),
                                other: _replaced(copies.holders[other], middle, taker),
                            }


STEPS: Sequence[Step] = (_moves, _exchanges, _chains)
# Where copies are loaded: the redundant ones may be of modules that are no longer hot, and to exchange two
# is to load two.
STEPS_OF_LOADED: Sequence[Step] = (_single_loads, _exchanges)


def even_memory(copies: Copies, most: float) -> None:
    """Moves modules from the worker with the most until it has `most`, if no layer gets slower by it."""
    total = copies.total
    while True:
        fullest = max(total, key=lambda rank: (total[rank], rank))
        if total[fullest] <= most:
            return
        takers = sorted((r for r in total if total[r] + 1 < total[fullest]), key=lambda r: (total[r], r))
        change = next(filter(partial(_is_harmless, copies), _lightening(copies, fullest, takers)), None)
        if change is None:
            return
        copies.apply(change)


def _is_harmless(copies: Copies, change: Change) -> bool:
    peak = copies.peak_after(change, None)
    return peak is not None and peak <= copies.time_of(next(iter(change))[0]) * _ROUNDED


def _lightening(copies: Copies, fullest: int, takers: list[int]) -> Iterator[Change]:
    room = {layer: copies.time_of(layer) * _ROUNDED for layer in copies.problem.layers}
    modules = copies.modules_of(fullest)
    for taker in takers:
        for key in modules:
            held, time = copies.holders[key], copies.times[key[0]][taker]
            if taker in held or (key, fullest) in copies.pinned:
                continue
            if time + copies.charge_moved(key, fullest, taker) <= room[key[0]]:
                yield {key: _replaced(held, fullest, taker)}
        if not copies.pinned:
            yield from _exchanged_layers(copies, fullest, taker)


def _exchanged_layers(copies: Copies, fullest: int, taker: int) -> Iterator[Change]:
    """The two workers change places in a layer, if that brings them nearer to each other."""
    between = copies.total[fullest] - copies.total[taker]
    for layer in copies.problem.layers:
        mine, others = copies.held[layer, fullest], copies.held[layer, taker]
        if 0 < len(mine) - len(others) < between:
            yield {
                key: _replaced(copies.holders[key], *((fullest, taker) if key in mine else (taker, fullest)))
                for key in sorted(mine ^ others)
            }


def _replaced(ranks: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
    return tuple(new if rank == old else rank for rank in ranks)
