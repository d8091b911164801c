"""What is predicted of a machine by its bandwidth and its rate alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from scaling.costs.choose import costs_of
from scaling.costs.forms import BYTES_PER_WEIGHT
from scaling.costs.roofline import RooflineCosts
from scaling.machines import Machine, Overheads
from scaling.shape import shape_of_config

MACHINE = Machine("m0", cores=4, memory_gb=16, gbytes_per_s=20, gflops=200)
SHAPE = shape_of_config(ModelConfig(), "small")
rows = st.integers(1, 2000)
forms = st.sampled_from(sorted(BYTES_PER_WEIGHT))


def costs(form: str = "bfloat16", threads: float | None = None) -> RooflineCosts:
    return RooflineCosts.of(MACHINE, SHAPE, form=form, threads=threads)


@given(forms, rows, rows, st.integers(1, 10**9), st.integers(1, 10**9))
def test_more_rows_and_more_weights_take_no_less_time(
    form: str, num_rows: int, more: int, params: int, others: int
) -> None:
    product = costs(form).product
    assert product(params, num_rows, form) <= product(params, num_rows + more, form)
    assert product(params, num_rows, form) <= product(params + others, num_rows, form)


@given(forms, st.lists(st.integers(0, 50), min_size=1, max_size=64))
def test_an_expert_more_takes_no_less_time(form: str, rows_E: list[int]) -> None:
    assert costs(form).experts(rows_E) <= costs(form).experts([*rows_E, 1])


def test_one_row_reads_the_weights_and_many_rows_multiply() -> None:
    few, many = costs().experts([1]), costs().experts([2000])
    assert few == pytest.approx(2 * SHAPE.expert_params / 20e9)
    assert many == pytest.approx(2 * 2000 * SHAPE.expert_params / 200e9)


def test_a_quarter_of_the_threads_multiplies_at_a_quarter_of_the_rate() -> None:
    assert costs(threads=1).experts([2000]) == pytest.approx(4 * costs().experts([2000]))


def test_nothing_to_do_takes_no_time() -> None:
    assert costs().experts([0, 0]) == costs().experts([]) == 0
    assert costs().shared_layer(0, 0, 0, 0) == costs().head(0) == 0


def test_each_sequence_reads_a_cache_of_its_own() -> None:
    """Keys and values in bfloat16, of one layer: 64 sequences read 64 times what one reads."""
    found = RooflineCosts.of(
        Machine("m0", cores=4, memory_gb=16, gbytes_per_s=1e-3, gflops=1e6), SHAPE, form="bfloat16"
    )
    kept = 2 * SHAPE.cache_values / SHAPE.n_layers
    assert found.attention(64 * 1000, 64 * 1000) == pytest.approx(64 * 1000 * kept / 1e6)
    assert found.attention(1000 * 1000, 1000) == pytest.approx(1000 * kept / 1e6)


def test_overheads_are_added() -> None:
    machine = Machine("m0", 4, 16, 20, 200, overheads=Overheads(step_us=100, row_us=10, call_us=50))
    found = RooflineCosts.of(machine, SHAPE, form="bfloat16")
    assert found.step(8, 8) == pytest.approx(180e-6)
    assert found.call(1000, 1000) == pytest.approx(50e-6 + 2000 / 20e9)


def test_a_form_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="form 'int3'"):
        costs_of(MACHINE, SHAPE, form="int3")
