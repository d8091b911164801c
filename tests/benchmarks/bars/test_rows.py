"""The bars as they were set, and how each is read from what its benchmark says."""

from typing import Any

import pytest

from benchmarks import arguments, dispatch, engine, start
from benchmarks.bars.figure import Bar, Figure
from benchmarks.bars.rows import ROWS, chosen
from expertmesh.commands.options import options_of

FOUND: dict[str, dict[str, Any]] = {
    "grpc": {
        "served": [
            {"clients": 32, "workers": number, "share_of_engine_rounds": [0.9, 1.0, 0.95]}
            for number in (0, 2)
        ]
    },
    "overload": {"goodput_over_peak": 0.91, "refusal_p99_seconds": 0.02},
    "dispatch": {"ratios": [{"workers": number, "pool_over_bare_rounds": [1.5]} for number in (1, 2)]},
    "workers": {"worker_shares": [{"workers": 2, "batch": batch, "rounds": [0.8, 0.9]} for batch in (1, 32)]},
    "step": {"splits": [{"workers": 0, "batch": 1, "outside_microseconds": 300.0}]},
    "gap": {
        "load": {"streams": 16, "prompt_tokens": 8192},
        "workers": 0,
        "bounds": [{"bound_ms": 50, "added_seconds": [0.04, 0.03, 0.06]}],
    },
    "streams": {"streams": 1000, "decision_seconds": [0.4, 0.6, 0.45]},
    "readers": {"background": 200, "slowdown_rounds": [0.04, 0.01, 0.06]},
    "engine-death": {
        "streams": 16,
        "deaths": [
            {"workers": number, "ended_seconds": [0.1, 0.2, 0.3], "ready_seconds": [1.0, 2.0, 6.0]}
            for number in (0, 2)
        ],
    },
    "front-death": {"lost": [0, 2, 1], "changed": [0, 0, 0]},
    "start": {
        "more_than_beside": [
            {"workers": number, "seconds": [0.5], "pss": [100 << 20], "rss": [160 << 20]} for number in (0, 2)
        ]
    },
}

# What the issue set: the limit, and the one to be proud of.
BARS: dict[str, list[tuple[str, float, float | None]]] = {
    "grpc": [("at least", 0.92, 0.97)] * 2,
    "overload": [("at least", 0.9, 0.95), ("at most", 25.0, None)],
    "dispatch": [("at most", 1.6, 1.3)] * 2,
    "workers": [("at least", 0.8, 0.9), ("at least", 0.92, 0.97)],
    "step": [("at most", 0.5, 0.2)],
    "gap": [("at most", 50.0, 20.0)],
    "streams": [("at most", 0.5, None)],
    "readers": [("at most", 5.0, None)],
    "engine-death": [("at most", 1.0, None), ("at most", 5.0, 2.0)] * 2,
    "front-death": [("at most", 0.0, None)] * 2,
    "start": [("at most", 1.0, None), ("at most", 150.0, None), ("at most", 150.0, None)] * 2,
}
MEDIANS = {
    "grpc": [0.95, 0.95],
    "overload": [0.91, 20.0],
    "dispatch": [1.5, 1.5],
    "workers": [0.85, 0.85],
    "step": [0.3],
    "gap": [40.0],
    "streams": [0.45],
    "readers": [4.0],
    "engine-death": [0.2, 2.0, 0.2, 2.0],
    "front-death": [3, 0],
    "start": [0.5, 100.0, 160.0, 0.5, 100.0, 160.0],
}


def figures(name: str) -> list[Figure]:
    return list(ROWS[name].read(FOUND[name]))


def limits(bar: Bar) -> tuple[str, float, float | None]:
    return bar.direction, bar.wanted, bar.beyond


@pytest.mark.parametrize("name", ROWS)
def test_each_row_has_its_bars_and_reads_its_figures(name: str) -> None:
    found = figures(name)
    assert [limits(figure.bar) for figure in found] == BARS[name]
    assert [figure.median for figure in found] == pytest.approx(MEDIANS[name])


def test_no_two_figures_have_one_name() -> None:
    names = [figure.bar.what for name in ROWS for figure in figures(name)]
    assert len(set(names)) == len(names) == sum(len(bars) for bars in BARS.values())


def test_one_stream_that_is_lost_in_one_round_is_a_miss() -> None:
    lost, changed = ROWS["front-death"].read({"lost": [0, 0, 1], "changed": [0, 0, 0]})
    assert (lost.word, changed.word) == ("MISSED", "met")


def test_start_has_no_figures_without_another_tree() -> None:
    assert list(ROWS["start"].read({"more_than_beside": []})) == []


def test_only_what_compares_is_told_of_the_other_tree() -> None:
    told = {name for name, row in ROWS.items() if "--beside=T" in row.arguments(quick=False, beside="T")}
    assert told == {"start"}


def test_workers_have_slices_and_one_process_has_whole_experts() -> None:
    _, _, *given = ROWS["workers"].arguments(quick=False, beside=None)
    config = options_of(arguments.engine().parse_args(given), arguments.EngineBenchmark).engine
    assert [engine.engine_config(config, workers).expert_slices for workers in (0, 2)] == [1, 2]


def test_rows_keep_their_order() -> None:
    assert list(chosen(["start", "grpc"])) == ["grpc", "start"]


def test_the_pools_ratio_is_of_one_round() -> None:
    """Median of 2, 3 and 4, where the medians' ratio would be 20 / 5."""
    ways = {
        dispatch.BARE: (5.0, 4.0, 10.0),
        dispatch.POOL: (20.0, 8.0, 30.0),
        **dict.fromkeys((dispatch.STREAM_UNIX, dispatch.STREAM_TCP, dispatch.RAY), (6.0, 6.0, 6.0)),
    }
    results = [dispatch.Result(name, 2, 2048, 1.0, 1.0, rounds) for name, rounds in ways.items()]
    (figure,) = ROWS["dispatch"].read({"ratios": dispatch.ratios(results)})
    assert figure.rounds == (4.0, 2.0, 3.0)


def test_what_workers_leave_is_of_one_round() -> None:
    rates = [
        engine.Rate(workers, 1, 0.0, 0.0, 0.0, 0.0, decode)
        for workers, decode in ((0, (10.0, 20.0, 40.0)), (2, (9.0, 10.0, 30.0)))
    ]
    (figure,) = ROWS["workers"].read({"worker_shares": engine.worker_shares(rates)})
    assert figure.rounds == (0.9, 0.5, 0.75)


def test_what_a_start_takes_is_compared_round_by_round() -> None:
    ours = [start.Start(3.0, 300 << 20, 200 << 20, 3), start.Start(9.0, 310 << 20, 210 << 20, 3)]
    theirs = [start.Start(2.5, 250 << 20, 150 << 20, 1), start.Start(7.0, 250 << 20, 150 << 20, 1)]
    more = {"workers": 0, **start.more_than(ours, theirs)}
    seconds, pss, rss = ROWS["start"].read({"more_than_beside": [more]})
    assert seconds.rounds == (0.5, 2.0)
    assert (pss.rounds, rss.rounds) == ((50.0, 60.0), (50.0, 60.0))
