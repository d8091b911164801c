"""What the fronts of a server count together, one that dies and one that takes its place."""

from pathlib import Path

from coordinator.metrics.families import ours
from coordinator.metrics.ledger import Ledger, release
from coordinator.metrics.store import summed

CALLS = ours("calls", "Calls.", "method")


def ledgers(folder: Path, count: int = 2) -> list[Ledger]:
    return [Ledger.shared(folder, number, count) for number in range(count)]


def test_one_that_is_alone_counts_itself() -> None:
    ledger = Ledger()
    ledger.store.counter(CALLS, "get").add(2)
    held = ledger.held("places")
    assert (held.add(3), held.add(-1), held.total()) == (3, 2, 2)
    assert ledger.series() == [("expertmesh_calls", ("get",), (2.0,))]


def test_each_tells_the_counts_of_all(tmp_path: Path) -> None:
    first, second = ledgers(tmp_path)
    first.store.counter(CALLS, "get").add(2)
    second.store.counter(CALLS, "get").add(3)
    second.store.counter(CALLS, "put").add(5)
    for ledger in (first, second):
        assert summed(ledger.series()) == {
            ("expertmesh_calls", ("get",)): (5.0,),
            ("expertmesh_calls", ("put",)): (5.0,),
        }


def test_places_are_held_together(tmp_path: Path) -> None:
    """Whichever of the files is there first."""
    first, second, third = (ledger.held("places") for ledger in ledgers(tmp_path, 3))
    assert (first.add(1), second.add(2), third.add(4), first.add(-1)) == (1, 3, 7, 6)


def test_who_takes_a_dead_ones_place_holds_nothing_and_counts_on(tmp_path: Path) -> None:
    first, second = ledgers(tmp_path)
    first.held("places").add(5)
    first.kept("taken", count=2).own[1] = 7
    first.store.counter(CALLS, "get").add(2)
    places = second.held("places")
    assert places.add(1) == 6
    again = Ledger.shared(tmp_path, 0, 2)
    assert (places.total(), again.held("places").total()) == (1, 1)
    assert again.kept("taken", count=2).own[1] == 7
    # Also what it has not yet counted itself.
    assert ("expertmesh_calls", ("get",), (2.0,)) in again.series()
    again.store.counter(CALLS, "get").add()
    assert ("expertmesh_calls", ("get",), (3.0,)) in second.series()


def test_a_dead_ones_place_can_be_given_back_before_another_comes(tmp_path: Path) -> None:
    first, second = ledgers(tmp_path)
    first.held("places").add(5)
    release(tmp_path, 0)
    assert second.held("places").total() == 0
