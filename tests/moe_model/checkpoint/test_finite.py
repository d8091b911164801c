"""Weights are numbers."""

import pytest
import torch

from moe_model.checkpoint.finite import require_finite
from moe_model.errors import CheckpointError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_value_that_is_not_finite_is_found(dtype: torch.dtype, bad: float, place: int) -> None:
    tensor = torch.ones(1000).to(dtype)
    tensor[place] = bad
    with pytest.raises(CheckpointError, match="f: tensor 'w' has values that are not finite"):
        require_finite(tensor, "w", "f")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    """Though their sum is not."""
    tensor = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
    assert not tensor.sum().isfinite()
    require_finite(tensor, "w", "f")
    require_finite(torch.empty(0, dtype=dtype), "w", "f")


def test_both_infinities_do_not_cancel() -> None:
    with pytest.raises(CheckpointError):
        require_finite(torch.tensor([float("inf"), float("-inf")]), "w", "f")
