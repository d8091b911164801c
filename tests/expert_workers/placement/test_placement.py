"""The laws of a placement that is made anew; those of one that is kept are in test_placement_kept.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_workers.placement.placement import Placement, Share, balance, drops, moves, place
from moe_model.errors import ConfigError
from moe_model.layers.dispatch import ExpertKey

SPEEDS = st.sampled_from([0.5, 1.0, 1.0, 2.0])
LOADS = st.sampled_from([0.0, 1.0, 2.0, 3.5, 10.0])


def grid(n_layers: int, n_slots: int) -> list[ExpertKey]:
    return [(layer, slot) for layer in range(n_layers) for slot in range(n_slots)]


def workers(num: int, **common: object) -> list[Share]:
    return [Share(rank, **common) for rank in range(num)]  # type: ignore[arg-type]


def totals(placement: Placement, shares: Sequence[Share]) -> list[int]:
    return [len(placement.experts_of(share.rank)) for share in shares]


def times(
    placement: Placement, shares: Sequence[Share], loads: Mapping[ExpertKey, float], layer: int
) -> dict[int, float]:
    """How long each worker takes for a layer, straight from the definition."""
    speed = {share.rank: share.speed for share in shares}
    spent = dict.fromkeys(speed, 0.0)
    for key, ranks in placement.holders.items():
        if key[0] == layer:
            for rank in ranks:
                spent[rank] += loads[key] / sum(speed[other] for other in ranks)
    return spent


@dataclass(frozen=True)
class Case:
    keys: list[ExpertKey]
    shares: list[Share]
    replicas: int
    loads: dict[ExpertKey, float] | None
    redundant: int

    def place(self) -> Placement:
        return place(self.keys, self.shares, self.replicas, loads=self.loads, redundant=self.redundant)

    @property
    def space(self) -> int:
        num = len(self.keys)
        return sum(num if s.max_modules is None else min(s.max_modules, num) for s in self.shares)


@st.composite
def cases(draw: st.DrawFn, *, redundant: bool = True) -> Case:
    """Anything that can be asked for, where at least one of each module fits."""
    keys = grid(draw(st.integers(1, 4)), draw(st.integers(1, 8)))
    ranks = draw(st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True))
    rooms = st.none() | st.integers(0, len(keys))
    share = st.builds(Share, st.just(0), SPEEDS, rooms, st.sampled_from(["", "a", "b", "c"]))
    drawn = [draw(share) for _ in ranks]
    shares = [Share(rank, s.speed, s.max_modules, s.node) for rank, s in zip(ranks, drawn, strict=True)]
    loads = draw(st.none() | st.dictionaries(st.sampled_from(keys), LOADS))
    case = Case(keys, shares, draw(st.integers(1, 4)), loads, draw(st.integers(0, 3)) if redundant else 0)
    if case.space < len(keys):
        return Case(keys, [Share(ranks[0]), *shares[1:]], case.replicas, loads, case.redundant)
    return case


@given(cases())
def test_every_module_has_distinct_holders_that_have_room(case: Case) -> None:
    placement = case.place()
    assert list(placement.holders) == case.keys
    for ranks in placement.holders.values():
        assert 1 <= len(ranks) == len(set(ranks)) <= len(case.shares)
        assert set(ranks) <= {share.rank for share in case.shares}
    for share in case.shares:
        assert share.max_modules is None or len(placement.experts_of(share.rank)) <= share.max_modules


@given(cases(redundant=False))
def test_memory_holds_as_many_copies_as_can_be_and_no_module_two_more_than_another(case: Case) -> None:
    numbers = [len(ranks) for ranks in case.place().holders.values()]
    goal = min(case.replicas, len(case.shares))
    assert sum(numbers) == min(goal * len(case.keys), case.space)
    assert max(numbers) <= goal
    assert max(numbers) - min(numbers) <= 1


@given(cases())
def test_redundant_copies_are_no_more_than_asked_for(case: Case) -> None:
    placement = case.place()
    for layer in {key[0] for key in case.keys}:
        numbers = [len(ranks) for key, ranks in placement.holders.items() if key[0] == layer]
        assert sum(numbers) <= len(numbers) * min(case.replicas, len(case.shares)) + case.redundant


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_arguments_does_not_matter(case: Case, random: Random) -> None:
    keys, shares = random.sample(case.keys, len(case.keys)), random.sample(case.shares, len(case.shares))
    again = Case(keys, shares, case.replicas, case.loads, case.redundant).place()
    assert again == case.place()


@given(cases(redundant=False))
def test_copies_are_on_different_nodes_where_memory_is_no_hindrance(case: Case) -> None:
    shares = [Share(share.rank, share.speed, None, share.node) for share in case.shares]
    nodes = {share.rank: share.node for share in shares}
    placement = place(case.keys, shares, case.replicas, loads=case.loads)
    for ranks in placement.holders.values():
        assert len({nodes[rank] for rank in ranks}) == min(len(ranks), len(set(nodes.values())))


def test_copies_are_on_different_nodes_where_memory_is_just_enough() -> None:
    shares = [Share(rank, 1.0, 4, "ab"[rank // 2]) for rank in range(4)]
    placement = place(grid(2, 4), shares, 2)
    assert totals(placement, shares) == [4] * 4
    assert all(min(ranks) < 2 <= max(ranks) for ranks in placement.holders.values())


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 9), st.data())
def test_without_loads_copies_differ_by_at_most_one_over_all_and_within_each_layer(
    n_layers: int, n_slots: int, num_workers: int, data: st.DataObject
) -> None:
    replicas = data.draw(st.integers(1, num_workers))
    shares = workers(num_workers)
    placement = place(grid(n_layers, n_slots), shares, replicas)
    assert all(len(ranks) == replicas for ranks in placement.holders.values())
    assert max(totals(placement, shares)) - min(totals(placement, shares)) <= 1
    for layer in range(n_layers):
        here = [len(placement.layers_of(rank).get(layer, ())) for rank in range(num_workers)]
        assert max(here) - min(here) <= 1


def fastest(
    keys: Sequence[ExpertKey], shares: Sequence[Share], n: int, loads: dict[ExpertKey, float]
) -> float:
    """The least time of one layer over all ways to put `n` copies of each module."""
    ways = list(combinations([share.rank for share in shares], n))
    return min(
        max(times(Placement(dict(zip(keys, chosen, strict=True))), shares, loads, 0).values())
        for chosen in product(ways, repeat=len(keys))
    )


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5), st.lists(SPEEDS, min_size=2, max_size=3), st.data()
)
def test_a_small_layer_is_nearly_as_fast_as_can_be(
    weights: list[int], speeds: list[float], data: st.DataObject
) -> None:
    keys = grid(1, len(weights))
    loads = {key: float(weight) for key, weight in zip(keys, weights, strict=True)}
    shares = [Share(rank, speed) for rank, speed in enumerate(speeds)]
    replicas = data.draw(st.integers(1, 2))
    time = max(times(place(keys, shares, replicas, loads=loads), shares, loads, 0).values())
    assert time <= 1.2 * fastest(keys, shares, replicas, loads)


def test_a_worker_of_twice_the_speed_gets_twice_the_load() -> None:
    shares = [Share(0), Share(1, speed=2.0), Share(2)]
    placement = place(grid(3, 16), shares, 1)
    assert totals(placement, shares) == [12, 24, 12]


def test_loads_weigh_and_a_module_without_one_weighs_the_mean() -> None:
    loads = {(0, 0): 6.0, (0, 1): 2.0, (0, 2): 4.0, (0, 3): 4.0}
    del loads[0, 3]
    placement = place(grid(1, 4), workers(2), 1, loads=loads)
    assert {frozenset(placement.experts_of(rank)) for rank in (0, 1)} == {
        frozenset({(0, 0), (0, 1)}),
        frozenset({(0, 2), (0, 3)}),
    }


def test_where_layers_are_as_fast_memory_is_even() -> None:
    """One hot module keeps a worker busy in every layer: not always the same worker."""
    loads = {(layer, slot): 8.0 if slot == 0 else 1.0 for layer, slot in grid(6, 9)}
    shares = workers(2)
    placement = place(grid(6, 9), shares, 1, loads=loads)
    assert balance(placement, shares, loads) == 1.0
    assert totals(placement, shares) == [27, 27]


def test_redundant_copies_go_to_the_most_load_per_copy() -> None:
    loads = {(0, 0): 1.0, (0, 1): 9.0, (0, 2): 5.0, (0, 3): 1.0}
    numbers = [
        [len(ranks) for ranks in place(grid(1, 4), workers(4), 1, loads=loads, redundant=n).holders.values()]
        for n in range(4)
    ]
    assert numbers == [[1, 1, 1, 1], [1, 2, 1, 1], [1, 2, 2, 1], [1, 3, 2, 1]]


def test_redundant_copies_make_a_hot_layer_even() -> None:
    loads = {key: 7.0 if key[1] == 0 else 1.0 for key in grid(1, 6)}
    shares = workers(3)
    assert balance(place(grid(1, 6), shares, 1, loads=loads), shares, loads) == pytest.approx(4 / 7)
    spread = place(grid(1, 6), shares, 1, loads=loads, redundant=2)
    assert balance(spread, shares, loads) > 0.9


def test_replicas_of_one_worker_spread_over_all_others() -> None:
    placement = place(grid(4, 8), workers(4), 2)
    partners = {rank for ranks in placement.holders.values() if 0 in ranks for rank in ranks}
    assert partners == {0, 1, 2, 3}


def test_the_odd_module_goes_to_another_worker_in_the_next_layer() -> None:
    placement = place(grid(4, 5), workers(2), 1)
    assert [len(placement.layers_of(0)[layer]) for layer in range(4)] == [3, 2, 3, 2]


def test_more_workers_than_modules_leaves_some_with_nothing() -> None:
    placement = place(grid(2, 2), workers(7), 1)
    assert len(placement.ranks) == 4
    assert placement.layers_of(6) == {}


def test_slots_need_not_follow_each_other() -> None:
    placement = place([(3, 17), (0, 5), (3, 2)], workers(1), 2)
    assert placement.holders == {(0, 5): (0,), (3, 2): (0,), (3, 17): (0,)}
    assert placement.layers_of(0) == {0: (5,), 3: (2, 17)}


def test_no_modules_are_placed_nowhere() -> None:
    assert place([], workers(2), 1, redundant=1, current=Placement({})) == Placement({})


@given(cases())
def test_the_views_of_a_placement_agree(case: Case) -> None:
    placement = case.place()
    for share in case.shares:
        by_layer = placement.layers_of(share.rank)
        keys = tuple((layer, slot) for layer in by_layer for slot in by_layer[layer])
        assert keys == placement.experts_of(share.rank) == tuple(sorted(keys))
        assert (share.rank in placement.ranks) == bool(keys)
        assert all(share.rank in placement.holders[key] for key in keys)


def test_without_workers_a_placement_holds_the_rest() -> None:
    placement = Placement({(0, 0): (0, 2), (0, 1): (1, 2)})
    assert placement.without({2, 7}) == Placement({(0, 0): (0,), (0, 1): (1,)})
    assert placement.without([1, 2]).holders == {(0, 0): (0,), (0, 1): ()}


def test_moves_and_drops_are_what_two_placements_differ_by() -> None:
    old = Placement({(0, 0): (0, 1), (0, 1): (1,), (0, 2): (2,)})
    new = Placement({(0, 0): (1, 3), (0, 1): (1,), (1, 0): (0,)})
    assert moves(old, new) == [((0, 0), 3), ((1, 0), 0)]
    assert drops(old, new) == [((0, 0), 0), ((0, 2), 2)]
    assert moves(old, old) == []


def test_balance_is_the_mean_over_the_slowest_added_up_over_layers() -> None:
    placement = Placement({(0, 0): (0,), (0, 1): (1,), (1, 0): (0, 1)})
    shares = [Share(0), Share(1)]
    assert balance(placement, shares, {(0, 0): 3.0, (0, 1): 1.0, (1, 0): 4.0}) == pytest.approx(4 / 5)
    assert balance(placement, shares, None) == 1.0
    assert balance(placement, [Share(0, speed=3.0), Share(1)], {(0, 0): 3.0, (0, 1): 1.0}) == 1.0


def test_balance_leaves_out_what_no_worker_holds() -> None:
    placement = Placement({(0, 0): (0,), (0, 1): (9,), (1, 0): ()})
    assert balance(placement, [Share(0)], None) == 1.0
    assert balance(Placement({}), [Share(0)], None) == 1.0


@pytest.mark.parametrize(
    ("shares", "replicas", "message"),
    [
        ([], 1, "workers: 0 is less than 1"),
        (workers(2), 0, "replicas: 0 is less than 1"),
        ([Share(3, speed=0.0)], 1, "worker 3: its speed, 0.0, is not above 0"),
        (workers(3, max_modules=2), 1, "max_modules: 6 modules fit on the workers, 8 are to be placed"),
    ],
)
def test_impossible_demands_are_refused(shares: list[Share], replicas: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        place(grid(2, 4), shares, replicas)
