import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_workers.placement import Placement, place
from moe_model.errors import ConfigError, ExpertsLostError


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    num_workers = draw(st.integers(1, 9))
    replicas = draw(st.integers(1, num_workers))
    return place(draw(st.integers(1, 6)), draw(st.integers(1, 12)), num_workers, replicas)


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 9), st.data())
def test_every_module_is_placed_on_just_so_many_workers(
    n_layers: int, n_experts: int, num_workers: int, data: st.DataObject
) -> None:
    replicas = data.draw(st.integers(1, num_workers))
    placement = place(n_layers, n_experts, num_workers, replicas)
    assert len(placement.holders) == n_layers
    for layer in placement.holders:
        assert len(layer) == n_experts
        for ranks in layer:
            assert len(ranks) == len(set(ranks)) == replicas
            assert set(ranks) <= set(range(num_workers))


@given(placements())
def test_copies_differ_by_at_most_one_over_all_and_within_each_layer(placement: Placement) -> None:
    totals = [len(placement.experts_of(rank)) for rank in range(placement.num_workers)]
    assert max(totals) - min(totals) <= 1
    for layer in range(placement.n_layers):
        here = [len(placement.layers_of(rank).get(layer, ())) for rank in range(placement.num_workers)]
        assert max(here) - min(here) <= 1


@given(placements())
def test_the_two_views_of_a_worker_agree(placement: Placement) -> None:
    for rank in range(placement.num_workers):
        by_layer = placement.layers_of(rank)
        keys = [(layer, expert) for layer in by_layer for expert in by_layer[layer]]
        assert tuple(keys) == placement.experts_of(rank) == tuple(sorted(placement.experts_of(rank)))


def test_place_is_deterministic() -> None:
    assert place(4, 5, 3, 2) == place(4, 5, 3, 2)


def test_the_odd_expert_goes_to_another_worker_in_the_next_layer() -> None:
    placement = place(4, 5, 2)
    assert [len(placement.layers_of(0)[layer]) for layer in range(4)] == [3, 2, 3, 2]


def test_replicas_of_one_worker_spread_over_all_others() -> None:
    placement = place(4, 8, 4, 2)
    partners = {rank for layer in placement.holders for ranks in layer if 0 in ranks for rank in ranks}
    assert partners == {0, 1, 2, 3}


def test_more_workers_than_modules_leaves_some_with_nothing() -> None:
    placement = place(2, 2, 7)
    assert sum(not placement.experts_of(rank) for rank in range(7)) == 3
    assert placement.layers_of(6) == {}


@pytest.mark.parametrize(
    ("num_workers", "replicas", "message"),
    [
        (0, 1, "workers: 0 is less than 1"),
        (2, 0, "replicas: 0 is not between 1 and the number of workers, 2"),
        (2, 3, "replicas: 3 is not between 1 and the number of workers, 2"),
    ],
)
def test_impossible_counts_are_refused(num_workers: int, replicas: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        place(1, 1, num_workers, replicas)


@given(placements(), st.data())
def test_assignment_covers_every_row_once_by_a_live_holder(placement: Placement, data: st.DataObject) -> None:
    counts = data.draw(
        st.lists(st.integers(0, 9), min_size=placement.n_experts, max_size=placement.n_experts)
    )
    live = data.draw(st.frozensets(st.integers(0, placement.num_workers - 1)))
    holders = placement.holders[0]
    lost = [expert for expert, count in enumerate(counts) if count and live.isdisjoint(holders[expert])]
    if lost:
        with pytest.raises(ExpertsLostError) as raised:
            placement.assign(0, counts, live)
        assert set(raised.value.ranks) == {rank for expert in lost for rank in holders[expert]}
        return
    segments = placement.assign(0, counts, live)
    seen = sorted(segment for parts in segments.values() for segment in parts)
    assert seen == [(expert, count) for expert, count in enumerate(counts) if count]
    for rank, parts in segments.items():
        assert rank in live
        assert parts == sorted(parts)
        assert all(rank in holders[expert] for expert, _ in parts)


def test_the_largest_expert_is_assigned_first_and_to_the_least_loaded() -> None:
    placement = place(1, 3, 2, 2)
    assert placement.assign(0, [2, 5, 4], frozenset({0, 1})) == {0: [(1, 5)], 1: [(0, 2), (2, 4)]}


def test_the_message_of_a_loss_names_layer_experts_and_workers() -> None:
    with pytest.raises(ExpertsLostError, match=r"layer 1: no live worker holds expert 0 \(lost: worker 1\)"):
        place(2, 3, 2).assign(1, [1, 0, 0], frozenset({0}))
