"""Which workers there shall be, on which machines."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_workers.supervision.crew import Crew, crew_of
from expert_workers.supervision.worker_state import SupervisedWorker
from expert_workers.transports.fleet import Machine
from tests.expert_workers.fakes import make_config, make_worker, placed

INFO = make_worker(make_config(), placed(2, 5, 1), 0).describe()
A, B, C = (Machine(name) for name in "abc")


def bound(rank: int, node_id: str | None) -> SupervisedWorker:
    return SupervisedWorker(rank, bound_to=node_id)


def running(rank: int, node_id: str) -> SupervisedWorker:
    """Wherever the cluster has put it."""
    return SupervisedWorker(rank, info=replace(INFO, rank=rank, node_id=node_id))


def leaving(machine: Machine) -> Machine:
    return replace(machine, is_leaving=True)


def test_each_machine_gets_its_workers() -> None:
    assert crew_of([], [A, B], 0, 2) == Crew(frozenset(), ("a", "a", "b", "b"))


def test_the_lowest_ranks_of_a_machine_stay() -> None:
    workers = [bound(rank, "ab"[rank % 2]) for rank in range(6)]
    assert crew_of(workers, [A, B], 0, 2) == Crew(frozenset({0, 1, 2, 3}))


@pytest.mark.parametrize("per_node", [0, 1])
def test_a_machine_that_leaves_has_none(per_node: int) -> None:
    workers = [running(0, "a"), running(1, "b"), running(2, "c")]
    crew = crew_of(workers, [A, leaving(B), C], 3, per_node)
    assert crew.staying == {0, 2}
    assert len(crew.coming) == (0 if per_node else 1)
    assert "b" not in crew.coming


@pytest.mark.parametrize("per_node", [0, 1])
def test_a_worker_that_is_bound_to_a_machine_goes_with_it(per_node: int) -> None:
    assert crew_of([bound(0, "a"), bound(1, "b")], [A], 1, per_node) == Crew(frozenset({0}))


def test_a_worker_that_the_cluster_can_start_elsewhere_stays_when_its_machine_is_gone() -> None:
    assert crew_of([running(0, "a"), running(1, "b")], [A], 2, 0) == Crew(frozenset({0, 1}))


def test_new_ones_go_where_the_fewest_are() -> None:
    workers = [running(0, "a"), running(1, "a"), running(2, "b")]
    assert Counter(crew_of(workers, [A, B, C], 6, 0).coming) == {"b": 1, "c": 2}


def test_without_a_machine_that_stays_there_are_none() -> None:
    assert crew_of([running(0, "a")], [leaving(A)], 2, 0) == Crew(frozenset())


def test_while_machines_are_not_known_the_cluster_places_workers() -> None:
    assert crew_of([bound(3, None)], None, 3, 0) == Crew(frozenset({3}), (None, None))


@given(
    places=st.dictionaries(st.integers(0, 9), st.sampled_from("abc")),
    departing=st.sets(st.sampled_from("abc")),
    per_node=st.integers(1, 3),
)
def test_every_machine_that_stays_has_just_its_number(
    places: Mapping[int, str], departing: set[str], per_node: int
) -> None:
    machines = [Machine(name, name in departing) for name in "abc"]
    crew = crew_of([bound(rank, place) for rank, place in places.items()], machines, 0, per_node)
    counts = Counter(places[rank] for rank in crew.staying) + Counter(crew.coming)
    assert counts == {name: per_node for name in "abc" if name not in departing}


@given(
    places=st.dictionaries(st.integers(0, 9), st.sampled_from("abc")),
    departing=st.sets(st.sampled_from("abc"), max_size=2),
    num_workers=st.integers(0, 12),
)
def test_in_all_there_are_as_many_as_are_wanted(
    places: Mapping[int, str], departing: set[str], num_workers: int
) -> None:
    machines = [Machine(name, name in departing) for name in "abc"]
    crew = crew_of([running(rank, place) for rank, place in places.items()], machines, num_workers, 0)
    assert len(crew.staying) + len(crew.coming) == num_workers
    assert not departing & {*crew.coming, *(places[rank] for rank in crew.staying)}
