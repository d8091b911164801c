"""What an experiment's file stands for, and what is refused of it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_model.errors import ConfigError
from scaling.cell import Cell
from scaling.strict import convert
from scaling.sweep.experiment import Experiment, planned, read_experiment
from scaling.sweep.fields import merged, nested, says

EXAMPLES = Path(__file__).parents[3] / "scaling" / "examples"


def cells(changes: list[dict[str, Any]] | None = None, **fields: Any) -> list[Cell]:
    base = {"model": "m", "load.concurrency": 4, **fields.pop("base", {})}
    experiment = convert({"name": "x", "base": base, **fields}, Experiment, "x.yaml")
    return list(planned(experiment, Path(), changes or [{}]).cells.values())


def test_the_product_of_all_fields() -> None:
    found = cells(sweep={"workers": [1, 2], "load.concurrency": [1, 8, 32]})
    assert [(cell.workers, cell.load.concurrency) for cell in found] == [
        *((1, 1), (1, 8), (1, 32)),
        *((2, 1), (2, 8), (2, 32)),
    ]


def test_base_alone_is_one_cell() -> None:
    assert [cell.workers for cell in cells(base={"workers": 3})] == [3]


def test_cells_of_their_own_add_to_the_product_and_equal_ones_are_one() -> None:
    found = cells(sweep={"workers": [1, 2]}, cells=[{"workers": 2}, {"workers": 4, "replicas": 2}])
    assert [(cell.workers, cell.replicas) for cell in found] == [(1, 1), (2, 1), (4, 2)]
    assert [cell.workers for cell in cells(cells=[{"workers": 7}])] == [7]


def test_skip_leaves_out_of_the_product_only() -> None:
    found = cells(
        sweep={"workers": [0, 1], "skew.zipf": [None, 1.2]},
        skip=[{"workers": 0, "skew": {"zipf": 1.2}}],
        cells=[{"workers": 0, "skew.zipf": 1.2}],
    )
    assert [(cell.workers, cell.skew.zipf) for cell in found] == [(0, None), (1, None), (1, 1.2), (0, 1.2)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sweep": {"wrokers": [1]}}, "wrokers"),
        ({"sweep": {"workers": []}}, "sweep"),
        ({"sweep": {"workers": [-1]}}, "workers"),
        ({"sweep": {"workers": [1]}, "skip": [{"workers": 2}]}, "skip 1: no cell"),
        ({"sweep": {"workers": [True]}}, "workers"),
        ({"base": {"load": 3}}, "load"),
        ({"base": {"load.concurrency.x": 3}}, "concurrency"),
        ({"rounds": 0}, "rounds"),
        ({"bounds": {"throughtput": 0.1}}, "throughtput"),
        ({"bounds": {"gap_median": 0.1}}, "need `machines`"),
        ({"cells": [{"where": "moon"}]}, "cells 1"),
        ({"base": {"load.tool": "aiprf"}}, "tool: 'aiprf' is none of own"),
        ({"base": {"load.tool": "aiperf", "load.lengths": "uniform"}}, "aiperf sends requests of one length"),
        ({"base": {"load.trace": "t.csv"}}, "trace_format: None is none of azure"),
        ({"base": {"workers": 1}, "skip": [{"workers": 1}]}, "nothing is left"),
        ({"base": {"serve": {"workers": 3}}}, "serve: workers"),
        ({"base": {"serve": {"ray-address": "x"}}}, "serve: ray-address"),
        ({"base": {"serve": {"--x": 3}}}, "no name of an option"),
        ({"sweep": {f"serve.x{i}": list(range(10)) for i in range(6)}}, "more than"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cells(**fields)


def test_all_cells_that_cannot_be_are_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        cells(
            sweep={"workers": [0, 1]},
            cells=[{"workers": 1, "replicas": 2}, {"workers": 0, "fault": {"kind": "kill"}}],
        )
    message = str(caught.value)
    assert "\n" not in message
    assert "2 copies need as many workers" in message
    assert "fault: needs workers" in message


def test_changes_multiply_every_cell() -> None:
    found = cells([{"serve.max-batch": 8}, {"serve.max-batch": 16}], sweep={"workers": [1, 2]})
    assert [cell.serve["max-batch"] for cell in found] == [8, 16, 8, 16]


@pytest.mark.parametrize(("name", "num"), [("small", 4), ("reference", 36), ("prediction", 15)])
def test_the_examples(name: str, num: int) -> None:
    path = EXAMPLES / f"{name}.yaml"
    plan = planned(read_experiment(path), path.parent)
    assert len(plan.cells) == num
    assert {(plan.base / cell.model).exists() for cell in plan.cells.values()} == {True}


def test_the_reference_has_two_families_and_three_links() -> None:
    path = EXAMPLES / "reference.yaml"
    found = planned(read_experiment(path), path.parent).cells.values()
    assert len({cell.model for cell in found}) == 2
    assert len({str(cell.link) for cell in found}) == 3


def test_uneven_cells_of_the_prediction() -> None:
    path = EXAMPLES / "prediction.yaml"
    found = planned(read_experiment(path), path.parent)
    assert sum(bool(cell.hosts) for cell in found.cells.values()) == 3
    assert found.experiment.bounds == {
        "throughput_median": 0.08,
        "throughput_worst": 0.2,
        "gap_median": 0.12,
    }


def test_a_bound_of_another_name_is_refused_before_anything_runs() -> None:
    bounded = Experiment("x", bounds={"throughput": 0.1}, machines="machines.json")
    with pytest.raises(ConfigError, match="'throughput' is not known; there are throughput_median, "):
        planned(bounded, EXAMPLES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=4,
)
OBJECTS = st.dictionaries(st.text("abc", min_size=1, max_size=2), JSON, max_size=4)


@given(OBJECTS, OBJECTS)
def test_merging_says_all_that_the_second_says(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert says(merged(first, second), second)
    assert merged(first, {}) == first
    assert merged({}, second) == second


def test_a_field_in_both_forms() -> None:
    assert nested({"load.rate": 1, "load": {"concurrency": 2}}, "x") == {
        "load": {"rate": 1, "concurrency": 2}
    }
    with pytest.raises(ConfigError, match="twice"):
        nested({"load.rate": 1, "load": {"rate": 2}}, "x")
    with pytest.raises(ConfigError, match="twice"):
        nested({"load": 1, "load.rate": 2}, "x")


def test_true_is_not_one() -> None:
    assert not says({"a": True}, {"a": 1})
    assert says({"a": [1, 2]}, {"a": [1, 2]})
    assert not says({"a": [1, 2]}, {"a": [1]})
