"""Costs between what was measured: laws that hold whatever was, and known tables."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_model.config import ModelConfig
from scaling.costs.choose import costs_of
from scaling.costs.model_costs import ModelCosts
from scaling.costs.roofline import RooflineCosts
from scaling.costs.table import ProductTable
from scaling.machines import Machine, Overheads, ProductRate
from scaling.shape import Shape, shape_of_config

SHAPE = shape_of_config(ModelConfig(), "small")
MiB = 1024.0
NONE = Overheads()


def rate(rows: int, seconds: float, kb: float = MiB, kind: str = "expert", threads: int = 0) -> ProductRate:
    num_bytes = 1024 * kb
    made = {
        "form": "bfloat16",
        "rows": rows,
        "gflops": 1e-9 * num_bytes * rows / seconds,
        "gbytes_per_s": 1e-9 * num_bytes / seconds,
        "kind": kind,
        "matrix_kb": kb,
        "threads": threads,
    }
    return msgspec.convert(made, ProductRate)


def machine(rates: list[ProductRate], overheads: Overheads = NONE) -> Machine:
    return Machine("m0", 2, 8, 1, 10, rates=tuple(rates), overheads=overheads)


seconds = st.floats(1e-6, 1e-1)
# As disturbed as may be: no order in rows or sizes.
tables = st.lists(
    st.builds(
        rate,
        st.sampled_from([1, 4, 16, 64]),
        seconds,
        st.sampled_from([128.0, 1024.0, 8192.0]),
        st.sampled_from(["linear", "exact", "expert"]),
        st.sampled_from([0, 1]),
    ),
    min_size=1,
    max_size=30,
)
rows = st.integers(1, 1000)


@given(tables, rows, rows, st.floats(64, 16384), st.floats(1, 8192))
def test_more_rows_or_bytes_never_take_less(
    rates: list[ProductRate], one: int, other: int, kb: float, more: float
) -> None:
    table = ProductTable(rates)
    assert table.seconds(one, kb) <= table.seconds(one + other, kb) * (1 + 1e-9)
    assert table.seconds(one, kb) <= table.seconds(one, kb + more) * (1 + 1e-9)


@given(tables, st.lists(st.integers(0, 64), min_size=1, max_size=16), rows, st.floats(0.2, 4))
def test_one_more_expert_or_row_or_less_of_a_core_never_takes_less(
    rates: list[ProductRate], rows_E: list[int], one: int, threads: float
) -> None:
    costs = ModelCosts.of(machine(rates), SHAPE, form="bfloat16", threads=threads)
    assert costs.experts(rows_E) <= costs.experts([*rows_E, one]) * (1 + 1e-9)
    assert costs.experts([one]) <= costs.experts([one + 1]) * (1 + 1e-9)
    more = costs.shared_layer(0, one + 1, 50 * one + 50, 50)
    assert costs.shared_layer(0, one, 50 * one, 50) <= more * (1 + 1e-9)
    fewer = ModelCosts.of(machine(rates), SHAPE, form="bfloat16", threads=threads / 2)
    assert costs.experts([one]) <= fewer.experts([one]) * (1 + 1e-9)


@given(tables, rows)
def test_nothing_is_quicker_than_the_roofline(rates: list[ProductRate], one: int) -> None:
    of = machine(rates)
    best = msgspec.structs.replace(
        of,
        gbytes_per_s=max(1, *(each.gbytes_per_s for each in rates), 0),
        gflops=max(10, *(each.gflops for each in rates), 0),
    )
    costs = ModelCosts.of(of, SHAPE, form="bfloat16")
    bound = RooflineCosts.of(best, SHAPE, form="bfloat16")
    assert costs.experts([one, one]) >= bound.experts([one, one]) * (1 - 1e-9)
    assert costs.head(one) >= bound.head(one) * (1 - 1e-9)
    assert costs.shared_layer(0, one, 9 * one, 9 * one) >= bound.attention(9 * one, 9 * one) * (1 - 1e-9)
    assert costs.call(one, one) >= bound.call(one, one) * (1 - 1e-9)


def test_a_table_is_read_between_its_points_and_beyond_them() -> None:
    table = ProductTable([rate(1, 1e-3), rate(4, 4e-3), rate(1, 1e-2, 100 * MiB), rate(4, 4e-2, 100 * MiB)])
    assert table.seconds(2, MiB) == pytest.approx(2e-3)
    assert table.seconds(1, 10 * MiB) == pytest.approx(10**-2.5)
    assert table.seconds(8, MiB) == pytest.approx(8e-3)
    assert table.seconds(1, 200 * MiB) == pytest.approx(2e-2)
    assert 1e-3 / 16 < table.seconds(1, MiB / 16) < 1e-3 / 4
    assert table.seconds(0, MiB) == 0


def test_a_single_size_stands_for_all() -> None:
    assert ProductTable([rate(1, 1e-3)]).seconds(1, MiB / 64) == pytest.approx(1e-3 / 64)


def test_threads_lie_between_one_and_all() -> None:
    rates = [rate(1, 1e-3), rate(1, 1.5e-3, threads=1)]

    def experts(threads: float) -> float:
        return ModelCosts.of(machine(rates), SHAPE, form="bfloat16", threads=threads).experts([1])

    assert experts(1) == pytest.approx(1.5 * experts(2))
    assert experts(2) < experts(1.5) < experts(1)
    assert experts(0.5) == pytest.approx(2 * experts(1))
    assert experts(8) == experts(2)


def test_overheads_and_the_products_factor_count() -> None:
    found = Overheads(step_us=100, layer_us=20, row_us=1, draw_ns=1, value_ns=1, kernels=2, call_us=50)
    plain = ModelCosts.of(machine([rate(1, 1e-2)]), SHAPE, form="bfloat16")
    costs = ModelCosts.of(machine([rate(1, 1e-2)], found), SHAPE, form="bfloat16")
    assert costs.experts([1]) == pytest.approx(2 * plain.experts([1]))
    assert costs.step(4, 4) == pytest.approx(104e-6 + 1e-9 * 4 * SHAPE.vocab_size)
    beside = 20e-6 + 1e-9 * 4 * SHAPE.d_model
    assert costs.shared_layer(0, 4, 0, 0) == pytest.approx(beside + 2 * plain.shared_layer(0, 4, 0, 0))
    assert costs.call(0, 0) == pytest.approx(50e-6)


def test_weights_that_the_cache_keeps_have_a_factor_of_their_own() -> None:
    model_mb = 2e-6 * (SHAPE.shared_params + SHAPE.num_experts * SHAPE.expert_params)
    found = Overheads(kernels=2, cached=0.5)

    def experts(cache_mb: float) -> float:
        of = msgspec.structs.replace(machine([rate(1, 1e-2)], found), cache_mb=cache_mb)
        return ModelCosts.of(of, SHAPE, form="bfloat16").experts([1])

    assert experts(0) == pytest.approx(4 * experts(2 * model_mb))
    assert experts(model_mb / 2) == pytest.approx(1.25 / 2 * experts(0))


def test_another_form_stands_in_for_one_that_was_not_measured() -> None:
    of = machine([rate(1, 1e-2)])
    assert ModelCosts.of(of, SHAPE, form="q4").experts([1]) == ModelCosts.of(
        of, SHAPE, form="bfloat16"
    ).experts([1])


def test_a_machine_with_rates_gets_costs_by_them() -> None:
    assert isinstance(costs_of(machine([rate(1, 1e-2)]), SHAPE, form="bfloat16"), ModelCosts)
    with pytest.raises(ValueError, match="no rates"):
        ModelCosts.of(machine([]), SHAPE, form="bfloat16")


def test_products_are_those_of_a_layer() -> None:
    shape: Shape = SHAPE
    for matrices, products in zip(shape.layer_matrices, shape.layer_products, strict=True):
        assert sum(rows * columns for rows, columns in matrices) == sum(each.params for each in products)
        assert sorted(each.kind for each in products) == ["exact", "linear", "router"]


def test_a_larger_matrix_that_was_quicker_is_not_believed() -> None:
    table = ProductTable([rate(1, 1e-2), rate(1, 1e-3, 8 * MiB)])
    assert [table.seconds(1, size * MiB) for size in (1, 4, 8)] == pytest.approx([1e-2] * 3)
