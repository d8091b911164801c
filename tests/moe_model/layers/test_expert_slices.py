import pytest

from moe_model.errors import ConfigError
from moe_model.layers.expert_slices import MOST_SLICES, ExpertSlice, check_slices


def test_every_hidden_unit_is_in_one_slice() -> None:
    for num in (1, 2, 3, 4, 6):
        slices = [range(24)[ExpertSlice(index, num).units(24)] for index in range(num)]
        assert [unit for units in slices for unit in units] == list(range(24))
        assert {len(units) for units in slices} == {24 // num}


def test_slices_that_experts_cannot_be_in_are_refused_by_number() -> None:
    check_slices(24, 1)
    check_slices(24, 8)
    with pytest.raises(
        ConfigError, match=r"expert_slices: 5 slices of 24 hidden units would not be of one size"
    ):
        check_slices(24, 5)
    for number in (0, -1, MOST_SLICES + 1, 24):
        with pytest.raises(ConfigError, match=rf"expert_slices: {number} is not in \[1, 16\]"):
            check_slices(24, number)


def test_slices_are_whole_blocks() -> None:
    check_slices(192, 3, block=32)
    check_slices(100, 1, block=32)
    with pytest.raises(
        ConfigError, match="expert_slices: 4 slices of 192 hidden units would cut blocks of 32"
    ):
        check_slices(192, 4, block=32)
