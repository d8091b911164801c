"""Counts are additions; a histogram says the same as Prometheus' own; sums go over stores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from coordinator.metrics.families import Family, ours
from coordinator.metrics.store import Store, summed

CALLS = ours("calls", "Calls.", "method")
SECONDS = ours("seconds", "Seconds.", edges=(0.1, 1.0, 10.0))


def test_a_counter_grows() -> None:
    store = Store()
    store.counter(CALLS, "get").add()
    store.counter(CALLS, "get").add(2)
    store.counter(CALLS, "put")
    assert store.series() == [
        ("expertmesh_calls", ("get",), (3.0,)),
        ("expertmesh_calls", ("put",), (0.0,)),
    ]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0, 9.9, 10.0, 11.0]), st.integers(1, 3))))
def test_a_histogram_is_prometheus_own(observed: list[tuple[float, int]]) -> None:
    theirs = Histogram("seconds", "Seconds.", registry=CollectorRegistry(), buckets=SECONDS.edges)
    store = Store()
    ours_ = store.histogram(SECONDS)
    for value, times in observed:
        ours_.observe(value, times)
        for _ in range(times):
            theirs.observe(value)
    [(_, _, (*counts, total))] = store.series()
    [metric] = theirs.collect()
    cumulative = [each.value for each in metric.samples if each.name == "seconds_bucket"]
    assert [sum(counts[: end + 1]) for end in range(len(counts))] == cumulative
    [expected] = [each.value for each in metric.samples if each.name == "seconds_sum"]
    assert total == pytest.approx(expected)


def test_stores_are_summed_series_by_series() -> None:
    stores = [Store(), Store()]
    for number, store in enumerate(stores):
        store.counter(CALLS, "get").add(number + 1)
        store.histogram(SECONDS).observe(5.0, number + 1)
    stores[1].counter(CALLS, "put").add(7)
    assert summed(each for store in stores for each in store.series()) == {
        ("expertmesh_calls", ("get",)): (3.0,),
        ("expertmesh_calls", ("put",)): (7.0,),
        ("expertmesh_seconds", ()): (0.0, 0.0, 3.0, 0.0, 15.0),
    }


def test_the_labels_are_the_familys() -> None:
    with pytest.raises(AssertionError, match="expertmesh_calls"):
        Store().counter(CALLS)


def test_what_is_allocated_is_counted_in() -> None:
    places: dict[tuple[str, tuple[str, ...]], list[float]] = {}

    def allocate(key: tuple[str, tuple[str, ...]], count: int) -> list[float]:
        return places.setdefault(key, [1.0] * count)

    Store(allocate).counter(CALLS, "get").add(4)
    assert places == {("expertmesh_calls", ("get",)): [5.0]}


def test_a_family_says_how_many_numbers_a_series_has() -> None:
    assert (CALLS.num_values, SECONDS.num_values) == (1, 5)
    assert Family("a", "b").is_of_model
