"""A figure against its bar, and the table of them."""

import pytest

from benchmarks.bars.figure import Bar, Figure, lines

LEAST = Bar("a share", "at least", 0.75, 0.85)
MOST = Bar("a wait", "at most", 5.0, 2.0, " s")
NONE_LOST = Bar("lost", "at most", 0.0)


@pytest.mark.parametrize(
    ("bar", "value", "word"),
    [
        (LEAST, 0.7499, "MISSED"),
        (LEAST, 0.75, "met"),
        (LEAST, 0.85, "beyond"),
        (MOST, 5.01, "MISSED"),
        (MOST, 5.0, "met"),
        (MOST, 2.0, "beyond"),
        (NONE_LOST, 0.0, "met"),
        (NONE_LOST, 1.0, "MISSED"),
    ],
)
def test_a_bar_is_met_beyond_or_missed(bar: Bar, value: float, word: str) -> None:
    assert bar.judge(value) == word


def test_not_a_number_meets_no_bar() -> None:
    assert [bar.judge(float("nan")) for bar in (LEAST, MOST)] == ["MISSED", "MISSED"]


def test_the_median_of_the_rounds_is_judged() -> None:
    figure = Figure(MOST, (1.0, 4.0, 60.0))
    assert (figure.median, figure.word) == (4.0, "met")
    found = figure.as_json()
    assert found["bar"] == ["at most", 5.0, 2.0]
    assert (found["median"], found["verdict"], found["unit"]) == (4.0, "met", "s")


def test_the_table_says_bar_figure_and_verdict() -> None:
    header, wait, lost = lines([Figure(MOST, (1.0, 4.0, 60.0)), Figure(NONE_LOST, (0.0,))])
    assert " ".join(wait.split()) == "a wait <= 5 s <= 2 s 4 s 1 to 60, 3 met"
    assert " ".join(lost.split()) == "lost <= 0 0 met"
    assert header.index("verdict") == wait.index("met")
