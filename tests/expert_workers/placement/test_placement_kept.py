"""The laws of a placement that follows another one: what is held stays, unless the balance needs it."""

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from expert_workers.placement.placement import Placement, Share, balance, drops, moves, place
from tests.expert_workers.placement.test_placement import Case, cases, grid, times, totals, workers

ANY = 1e9


def follow(case: Case, current: Placement, tolerance: float = 0.1) -> Placement:
    return place(
        case.keys,
        case.shares,
        case.replicas,
        loads=case.loads,
        redundant=case.redundant,
        current=current,
        tolerance=tolerance,
    )


def time_of(placement: Placement, case: Case) -> float:
    loads = case.loads or dict.fromkeys(case.keys, 1.0)
    return sum(
        max(times(placement, case.shares, loads, layer).values()) for layer in {key[0] for key in case.keys}
    )


def num_copies(placement: Placement) -> int:
    return sum(len(ranks) for ranks in placement.holders.values())


@st.composite
def roomy_cases(draw: st.DrawFn) -> Case:
    """No memory limit and one node, where nothing but the balance can move what is held."""
    case = draw(cases())
    return replace(case, shares=[Share(share.rank, share.speed) for share in case.shares])


@given(cases())
def test_what_follows_at_once_is_the_same(case: Case) -> None:
    placement = case.place()
    assert moves(placement, follow(case, placement)) == []
    assert drops(placement, follow(case, placement)) == []


@given(cases(), cases())
def test_what_follows_anything_obeys_the_laws_of_a_new_placement(case: Case, other: Case) -> None:
    placement, fresh = follow(case, other.place()), case.place()
    assert list(placement.holders) == case.keys
    for ranks in placement.holders.values():
        assert 1 <= len(ranks) == len(set(ranks))
        assert set(ranks) <= {share.rank for share in case.shares}
    for share in case.shares:
        assert share.max_modules is None or len(placement.experts_of(share.rank)) <= share.max_modules
    if not case.redundant:
        assert num_copies(placement) == num_copies(fresh)


@given(cases(), cases())
def test_what_follows_anything_is_as_fast_as_the_tolerance_demands(case: Case, other: Case) -> None:
    assume(case.loads is None or len(case.loads) == len(case.keys))
    placement = follow(case, other.place())
    assert time_of(placement, case) <= 1.1001 * time_of(case.place(), case)


@given(roomy_cases(), st.data())
def test_a_loss_moves_only_what_was_lost(case: Case, data: st.DataObject) -> None:
    assume(len(case.shares) > 1)
    placement = case.place()
    lost = data.draw(st.sampled_from(case.shares))
    rest = replace(case, shares=[share for share in case.shares if share != lost])
    kept = placement.without({lost.rank})
    restored = follow(rest, kept, tolerance=ANY)
    assert drops(kept, restored) == []
    assert len(moves(kept, restored)) == num_copies(rest.place()) - num_copies(kept)
    if not case.redundant:
        assert {key for key, _ in moves(kept, restored)} <= set(placement.experts_of(lost.rank))


@given(roomy_cases(), st.data())
def test_more_moves_after_a_loss_only_where_layers_or_memory_would_be_uneven(
    case: Case, data: st.DataObject
) -> None:
    assume(len(case.shares) > 1 and (case.loads is None or len(case.loads) == len(case.keys)))
    placement = case.place()
    lost = data.draw(st.sampled_from(case.shares))
    rest = replace(case, shares=[share for share in case.shares if share != lost])
    least, restored, fresh = follow(rest, placement, tolerance=ANY), follow(rest, placement), rest.place()
    if len(moves(placement, restored)) > len(moves(placement, least)):
        is_slow = time_of(least, rest) > 1.0999 * time_of(fresh, rest)
        most = max(totals(fresh, rest.shares))
        assert is_slow or max(totals(least, rest.shares)) > max(most + 1, 1.0999 * most)


@given(st.integers(1, 6), st.integers(1, 12), st.integers(2, 8), st.data())
def test_among_equals_balance_needs_no_more_moves_after_a_loss(
    n_layers: int, n_slots: int, num_workers: int, data: st.DataObject
) -> None:
    """With one copy of each; with more, the only worker with little to do may hold what was lost already."""
    keys, shares = grid(n_layers, n_slots), workers(num_workers)
    placement = place(keys, shares, 1)
    lost = data.draw(st.integers(0, num_workers - 1))
    rest = [share for share in shares if share.rank != lost]
    restored = place(keys, rest, 1, current=placement)
    assert len(moves(placement, restored)) == len(placement.experts_of(lost))


def test_what_was_lost_changes_places_among_itself_before_anything_else_moves() -> None:
    keys, shares = grid(1, 4), workers(5)
    placement = Placement({(0, 0): (0, 1), (0, 1): (2, 3), (0, 2): (4, 0), (0, 3): (1, 2)})
    restored = place(keys, shares[1:], 2, current=placement)
    assert moves(placement, restored) == [((0, 0), 4), ((0, 2), 3)]


@given(st.integers(1, 24), st.integers(1, 6), st.integers(1, 4))
def test_new_workers_are_given_few_modules_and_nothing_else_moves(
    n_slots: int, num_workers: int, more: int
) -> None:
    keys = grid(1, n_slots)
    before = place(keys, workers(num_workers), 1)
    shares = workers(num_workers + more)
    after = place(keys, shares, 1, current=before)
    most = int(1.1 * -(-n_slots // len(shares)))
    assert max(totals(after, shares)) <= most
    given = [rank for _, rank in moves(before, after)]
    assert all(rank >= num_workers for rank in given)
    # What a worker has too much of must go; no worker is given more than the mean.
    assert len(given) >= sum(max(0, held - most) for held in totals(before, shares))
    assert max(map(given.count, given), default=0) <= -(-n_slots // len(shares))


@given(roomy_cases())
def test_without_a_reason_a_new_worker_is_given_nothing(case: Case) -> None:
    placement = case.place()
    more = replace(case, shares=[*case.shares, Share(99)])
    kept = follow(more, placement, tolerance=ANY)
    assert all(rank == 99 for _, rank in moves(placement, kept))
    if case.replicas < len(more.shares) and not case.redundant:
        assert moves(placement, kept) == []


def test_a_worker_that_comes_gets_its_part_of_every_layers_load() -> None:
    keys = grid(4, 8)
    before = place(keys, workers(3), 2)
    after = place(keys, workers(4), 2, current=before)
    assert balance(after, workers(4), None) >= 1 / 1.1
    assert len(moves(before, after)) <= 16


def test_a_worker_that_comes_gets_modules_though_no_layer_gets_faster() -> None:
    """Two modules a layer cannot be faster on four workers, but half as many are lost with one of them."""
    keys = grid(8, 2)
    after = place(keys, workers(4), 1, current=place(keys, workers(2), 1))
    assert max(totals(after, workers(4))) <= 5


def test_a_worker_that_comes_to_many_is_not_left_idle_for_being_within_the_tolerance() -> None:
    keys = grid(2, 60)
    before = place(keys, workers(20), 2)
    after = place(keys, workers(21), 2, current=before)
    given = moves(before, after)
    assert {rank for _, rank in given} == {20}
    assert 10 <= len(given) <= 12


def test_another_load_moves_redundant_copies_and_little_else() -> None:
    keys = grid(1, 8)
    shares = workers(4)
    before = place(keys, shares, 1, loads={k: 9.0 if k[1] == 0 else 1.0 for k in keys}, redundant=2)
    loads = {k: 9.0 if k[1] == 5 else 1.0 for k in keys}
    after = place(keys, shares, 1, loads=loads, redundant=2, current=before)
    assert len(after.holders[0, 5]) == 3
    fresh = place(keys, shares, 1, loads=loads, redundant=2)
    assert len(moves(before, after)) < len(moves(before, fresh))
    assert num_copies(after) == num_copies(before)


def test_where_few_moves_do_not_help_a_new_placement_is_taken() -> None:
    """Three modules would have to change places at once."""
    keys, shares = grid(1, 6), workers(2)
    before = place(keys, shares, 1, loads=dict(zip(keys, [2.0, 2.0, 5.0, 1.0, 1.0, 5.0], strict=True)))
    loads = dict(zip(keys, [3.0, 5.0, 2.0, 2.0, 5.0, 1.0], strict=True))
    after = place(keys, shares, 1, loads=loads, current=before)
    assert balance(before, shares, loads) < 0.9
    assert after == place(keys, shares, 1, loads=loads)


def test_a_small_change_of_the_loads_moves_nothing() -> None:
    keys = grid(4, 8)
    before = place(keys, workers(3), 1, loads={key: 10.0 + key[1] for key in keys}, redundant=1)
    loads = {key: 10.3 + key[1] - 0.2 * key[0] for key in keys}
    assert place(keys, workers(3), 1, loads=loads, redundant=1, current=before) == before


def test_copies_that_are_no_longer_wanted_go() -> None:
    keys = grid(2, 4)
    before = place(keys, workers(3), 2, redundant=2)
    after = place(keys, workers(3), 1, current=before)
    assert moves(before, after) == []
    assert sorted(totals(after, workers(3))) == [2, 3, 3]


def test_modules_that_no_longer_fit_go_elsewhere() -> None:
    keys = grid(1, 6)
    before = place(keys, workers(2), 1)
    after = place(keys, [Share(0, max_modules=1), Share(1)], 1, current=before)
    assert totals(after, workers(2)) == [1, 5]
    assert len(moves(before, after)) == 2


def test_a_new_module_is_placed_and_one_that_went_is_forgotten() -> None:
    before = place(grid(1, 4), workers(2), 1)
    keys = [*grid(1, 3), (0, 9)]
    after = place(keys, workers(2), 1, current=before)
    assert [key for key, _ in moves(before, after)] == [(0, 9)]
    assert [key for key, _ in drops(before, after)] == [(0, 3)]


def test_the_primary_stays_the_primary() -> None:
    keys = grid(1, 3)
    current = Placement(dict.fromkeys(keys, (1,)))
    assert all(ranks[0] == 1 for ranks in place(keys, workers(2), 2, current=current).holders.values())


def test_copies_on_one_node_are_parted_when_another_node_comes() -> None:
    keys = grid(2, 4)
    together = [Share(0, node="a"), Share(1, node="a")]
    before = place(keys, together, 2)
    after = place(keys, [*together, Share(2, node="b")], 2, current=before)
    assert all(2 in ranks for ranks in after.holders.values())
    assert len(moves(before, after)) == len(keys)


def test_memory_that_is_full_is_made_room_in_so_that_nothing_is_held_less_often_than_could_be() -> None:
    """Only rank 2 has room, and it holds what lacks a copy: something must move there to make room for it."""
    keys = grid(1, 3)
    shares = workers(3, max_modules=2)
    current = Placement({(0, 0): (0, 1), (0, 1): (0, 1), (0, 2): (2,)})
    after = place(keys, shares, 2, current=current)
    assert [len(ranks) for ranks in after.holders.values()] == [2, 2, 2]
    assert len(moves(current, after)) == 2
