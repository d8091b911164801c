import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_model.errors import ConfigError
from scaling.planning.drawn import draw_steps
from scaling.planning.loads import chances, even_loads, zipf_loads
from tests.examples import examples
from tests.scaling.planning.problems import make_problem
from tests.scaling.planning.shapes import small_shape


@given(st.integers(1, 8), st.integers(0, 1 << 16), st.floats(0, 4))
@settings(max_examples=examples(30))
def test_chances_of_a_layer_add_up_to_the_experts_of_a_row(top_k: int, seed: int, s: float) -> None:
    shape = small_shape(num_layers=3, num_experts=8, top_k=top_k)
    chance_LE = chances(zipf_loads(shape, s, seed), shape)
    assert chance_LE.sum(axis=1) == pytest.approx(np.full(3, top_k))
    assert ((chance_LE > 0) & (chance_LE <= 1)).all()


def test_layers_have_orders_of_their_own() -> None:
    shape = small_shape(num_layers=4, num_experts=16, top_k=2)
    loads = zipf_loads(shape, 1.2, 0)
    assert len({int(np.argmax(row)) for row in loads}) > 1
    assert sorted(loads[0]) == pytest.approx(sorted(loads[1]))
    assert loads != zipf_loads(shape, 1.2, 1)


def test_loads_of_another_model_are_refused() -> None:
    shape = small_shape(num_layers=2, num_experts=4, top_k=2)
    with pytest.raises(ConfigError, match="loads: 3 layers of 4 experts, the model has 2 of 4"):
        chances([[1.0] * 4] * 3, shape)
    with pytest.raises(ConfigError, match="loads: not all are numbers >= 0"):
        chances([[1.0, -1.0, 1.0, 1.0]] * 2, shape)
    assert chances([[0.0] * 4] * 2, shape).tolist() == [[0.5] * 4] * 2


def test_drawn_steps_have_the_chances_and_every_row_different_experts() -> None:
    shape = small_shape(num_layers=1, num_experts=8, top_k=3)
    chance_LE = chances(zipf_loads(shape, 1.0, 0), shape)
    problem = make_problem(chance_LE, [1.0], [8], num_rows=400)
    drawn = draw_steps(problem, 20, 5)
    assert (drawn.sum(axis=2) == 3 * 400).all()
    assert (drawn <= 400).all()
    assert drawn.mean(axis=1)[0] / 400 == pytest.approx(chance_LE[0], abs=0.02)
    assert (drawn == draw_steps(problem, 20, 5)).all()


def test_slices_of_an_expert_have_the_same_rows() -> None:
    shape = small_shape(num_layers=1, num_experts=4, top_k=2)
    problem = make_problem(chances(even_loads(shape), shape), [1.0], [8], num_slices=2)
    drawn = draw_steps(problem, 3, 0)
    assert (drawn[:, :, ::2] == drawn[:, :, 1::2]).all()
