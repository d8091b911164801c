from typing import Any

import numpy as np
import pytest
import torch

from expert_workers.wire import ExpertCall, ReplyForm, tensor_to_array
from expert_workers.worker.expert_worker import ExpertWorker
from moe_model.errors import ReplyError
from moe_model.layers.dispatch import Expert, compute_segments
from tests.expert_workers.fakes import dealt, make_config, make_expert, make_worker

CONFIG = make_config()
PLACEMENT = dealt(2, 5, 2)


def make_call(**changes: Any) -> ExpertCall:
    rows = np.linspace(-1, 1, 3 * CONFIG.d_model, dtype=np.float32).reshape(3, CONFIG.d_model)
    call = ExpertCall(1, 0, 0, ((0, 2), (2, 1)), None, None, rows, "float32", ReplyForm.PAIRS)
    return call._replace(**changes)


def layer_0(dtype: torch.dtype = torch.float32) -> dict[int, Expert]:
    return {expert: make_expert(CONFIG, (0, expert), dtype) for expert in range(CONFIG.n_experts)}


@pytest.fixture
def worker() -> ExpertWorker:
    return make_worker(CONFIG, PLACEMENT, 0)


def test_it_computes_the_segments(worker: ExpertWorker) -> None:
    call = make_call()
    expected = compute_segments(layer_0(), torch.from_numpy(call.x_RD), call.segments)
    reply = worker.compute(call)
    assert reply[:4] == (1, 0, 0, 1 * 2 + 3 * 1)
    assert np.array_equal(reply.y_ND, expected.numpy())


@pytest.mark.parametrize("num_repeats", [1, 40])
def test_sums_are_weighted_in_float32_and_in_the_order_of_the_pairs(
    worker: ExpertWorker, num_repeats: int
) -> None:
    num_rows = 2 * num_repeats
    index = np.concatenate([np.arange(num_rows), np.arange(num_repeats)]).astype(np.int32)
    x_RD = np.random.default_rng(0).standard_normal((num_rows, CONFIG.d_model), np.float32)
    weights = np.linspace(0.1, 0.9, 3 * num_repeats, dtype=np.float32)
    segments = ((0, 2 * num_repeats), (2, num_repeats))
    asked = make_call(segments=segments, row_index_P=index, x_RD=x_RD)
    pairs = worker.compute(asked).y_ND
    call = asked._replace(weights_P=weights, form=ReplyForm.SUM)
    expected = np.zeros((num_rows, CONFIG.d_model), np.float32)
    for row, weight, y_D in zip(index, weights, pairs, strict=True):
        expected[row] += weight * y_D
    assert np.array_equal(worker.compute(call).y_ND, expected)


def test_sums_without_an_index_are_weighted_rows(worker: ExpertWorker) -> None:
    weights = np.array([0.5, 0.25, 0.1], np.float32)
    pairs = worker.compute(make_call()).y_ND
    reply = worker.compute(make_call(weights_P=weights, form=ReplyForm.SUM))
    assert np.array_equal(reply.y_ND, weights[:, None] * pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16])
def test_rows_may_travel_in_another_dtype_and_answers_are_float32(
    dtype: torch.dtype, wire: torch.dtype
) -> None:
    worker = make_worker(CONFIG, PLACEMENT, 0, dtype)
    rows = torch.from_numpy(make_call().x_RD).to(torch.bfloat16)
    call = make_call(x_RD=tensor_to_array(rows.to(wire)), dtype=str(wire).removeprefix("torch."))
    expected = compute_segments(layer_0(dtype), rows.to(dtype), call.segments)
    y_ND = worker.compute(call).y_ND
    assert y_ND.dtype == np.float32
    assert np.array_equal(y_ND, expected.float().numpy())


def test_a_row_index_repeats_rows(worker: ExpertWorker) -> None:
    index = np.array([0, 2, 2], np.int32)
    reply = worker.compute(make_call(row_index_P=index))
    assert np.array_equal(reply.y_ND, worker.compute(make_call(x_RD=make_call().x_RD[index])).y_ND)


def test_rows_may_be_read_only(worker: ExpertWorker) -> None:
    call = make_call()
    rows = np.frombuffer(call.x_RD.tobytes(), np.float32).reshape(call.x_RD.shape)
    assert np.array_equal(worker.compute(make_call(x_RD=rows)).y_ND, worker.compute(call).y_ND)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": ((1, 3),)}, "worker 0: does not hold module 1 of layer 0"),
        ({"layer": 9}, "worker 0: does not hold module 0 of layer 9"),
        ({"segments": ()}, "no segment"),
        ({"segments": ((0, 3), (2, 0))}, "one without rows"),
        ({"segments": ((0, 4),)}, "3 pairs where the segments have 4"),
        ({"row_index_P": np.array([0, 1], np.int32)}, "2 pairs where the segments have 3"),
        ({"row_index_P": np.array([0, 1, 3], np.int32)}, "row index outside the 3 rows"),
        ({"row_index_P": np.array([0, 1, -1], np.int32)}, "row index outside the 3 rows"),
        ({"form": ReplyForm.SUM}, "a sum of 3 pairs without a weight for each"),
        ({"form": ReplyForm.SUM, "weights_P": np.ones(2, np.float32)}, "without a weight for each"),
        ({"x_RD": np.ones((3, 5), np.float32)}, r"rows have shape \(3, 5\), expected \(rows, 16\)"),
        ({"x_RD": np.ones(3, np.float32)}, r"rows have shape \(3,\)"),
    ],
)
def test_a_bad_call_is_refused(worker: ExpertWorker, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ReplyError, match=message):
        worker.compute(make_call(**changes))


def test_it_counts_the_rows_it_routed(worker: ExpertWorker) -> None:
    worker.compute(make_call())
    worker.compute(make_call())
    assert worker.describe().routed_rows == 6
