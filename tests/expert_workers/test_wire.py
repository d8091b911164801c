import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expert_workers.wire import (
    ExpertCall,
    ExpertReply,
    ReplyForm,
    all_finite,
    array_to_tensor,
    dtype_name,
    tensor_to_array,
    validate_reply,
    weights_tag,
)
from moe_model.errors import ReplyError

CALL = ExpertCall(
    7,
    3,
    0,
    ((1, 2), (4, 1)),
    np.array([0, 1, 1], np.int32),
    None,
    np.ones((2, 4), np.float32),
    "float32",
    ReplyForm.PAIRS,
)
SUM = CALL._replace(form=ReplyForm.SUM, weights_P=np.ones(3, np.float32))
REPLY = ExpertReply(7, 3, 0, 2 * 2 + 5, np.ones((3, 4), np.float32), 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_and_arrays_share_their_memory(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 4).to(dtype)
    back = array_to_tensor(tensor_to_array(tensor), dtype_name(dtype))
    assert back.dtype == dtype
    assert back.data_ptr() == tensor.data_ptr()
    assert torch.equal(back, tensor)


def test_other_dtypes_do_not_travel() -> None:
    with pytest.raises(ReplyError, match="float64"):
        dtype_name(torch.float64)


@given(st.lists(st.floats(width=32), max_size=20), st.sampled_from([torch.float32, torch.bfloat16]))
def test_finite_means_finite(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=torch.float32).to(dtype)
    assert all_finite(tensor_to_array(tensor), dtype_name(dtype)) == bool(tensor.isfinite().all())


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bad_value_is_found(value: float, dtype: torch.dtype) -> None:
    tensor = torch.full((9, 5), torch.finfo(dtype).max, dtype=dtype)
    tensor[1] = torch.finfo(dtype).min
    assert all_finite(tensor_to_array(tensor), dtype_name(dtype))
    tensor[8, 4] = value
    assert not all_finite(tensor_to_array(tensor), dtype_name(dtype))


@pytest.mark.parametrize("value", [1e30, -3e38])
def test_values_whose_squares_are_too_large_are_finite(value: float) -> None:
    assert all_finite(np.full((3, 4), value, np.float32), "float32")


def test_a_good_reply_passes() -> None:
    validate_reply(2, CALL, REPLY)
    validate_reply(2, SUM, REPLY._replace(y_ND=np.ones((2, 4), np.float32)))


def test_the_tag_tells_modules_and_counts_apart_and_has_32_bits() -> None:
    segments = [((1, 2), (4, 1)), ((1, 2), (5, 1)), ((1, 2), (4, 2)), ((1, 3),), ((0, 3),)]
    tags = [CALL._replace(segments=each).tag for each in segments]
    assert tags == [9, 10, 14, 6, 3]
    assert weights_tag([(2**32 - 1, 7)]) == 0
    assert weights_tag([(2**31, 2), (3, 1)]) == 6


def test_a_sum_has_a_row_for_each_row_that_was_sent() -> None:
    with pytest.raises(ReplyError, match=r"shape \(3, 4\), expected \(2, 4\)"):
        validate_reply(2, SUM, REPLY)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"call_id": 6}, "worker 2: reply has call id 6, expected 7"),
        ({"epoch": 2}, "worker 2: reply has epoch 2, expected 3"),
        ({"layer": 1}, "worker 2: reply has layer 1, expected 0"),
        ({"tag": 8}, "worker 2: reply has weights tag 8, expected 9"),
        ({"y_ND": np.ones((3, 4))}, "worker 2: reply has element type float64, expected float32"),
        ({"y_ND": np.ones((2, 4), np.float32)}, r"worker 2: reply has shape \(2, 4\), expected \(3, 4\)"),
        ({"y_ND": np.ones((3, 5), np.float32)}, r"worker 2: reply has shape \(3, 5\), expected \(3, 4\)"),
        ({"y_ND": np.ones(12, np.float32)}, r"worker 2: reply has shape \(12,\), expected \(3, 4\)"),
        ({"y_ND": np.full((3, 4), np.nan, np.float32)}, "worker 2: reply has values that are not finite"),
    ],
)
def test_a_wrong_reply_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ReplyError, match=message):
        validate_reply(2, CALL, REPLY._replace(**wrong))


def test_a_row_that_was_not_finite_is_not_the_worker_s_fault_but_its_neighbour_is() -> None:
    x = np.ones((2, 4), np.float32)
    x[1, 2] = np.inf
    y = np.ones((3, 4), np.float32)
    y[1:] = np.nan
    validate_reply(2, CALL._replace(x_RD=x), REPLY._replace(y_ND=y))
    validate_reply(2, SUM._replace(x_RD=x), REPLY._replace(y_ND=y[:2]))
    y[0, 0] = np.nan
    with pytest.raises(ReplyError, match="not finite"):
        validate_reply(2, CALL._replace(x_RD=x), REPLY._replace(y_ND=y))
    with pytest.raises(ReplyError, match="not finite"):
        validate_reply(2, SUM._replace(x_RD=x), REPLY._replace(y_ND=y[:2]))
