"""A step cut into parts is the same step: same rows, same order, and the same tokens come out of it."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.core.batch import build_batch, join_batches, split_step
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.overlap import Overlap
from coordinator.engine.core.step import Chunk, Step
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.model import Part
from tests.coordinator.engine.core.test_batch import BLOCK_SIZE, chunks
from tests.coordinator.engine.core.test_engine import REFERENCE, check_all, mixed_requests
from tests.models import drain, make_cache, random_model, tiny_engine
from tests.native import KERNELS

CPU = torch.device("cpu")


@given(chunks(), st.integers(1, 4))
def test_parts_are_the_step_in_order_and_about_even(picked: list[Chunk], num_parts: int) -> None:
    step = Step(tuple(picked))
    parts = split_step(step, num_parts)
    assert [chunk for part in parts for chunk in part.chunks] == picked
    assert 1 <= len(parts) <= num_parts
    assert all(part.chunks for part in parts)
    largest = max(chunk.num_tokens for chunk in picked)
    assert max(part.num_tokens for part in parts) <= step.num_tokens / num_parts + largest


@given(chunks(), st.integers(1, 3))
def test_joined_batches_tell_of_the_rows_where_they_are(picked: list[Chunk], num_parts: int) -> None:
    parts = split_step(Step(tuple(picked)), num_parts)
    batch = join_batches([build_batch(part, BLOCK_SIZE, CPU) for part in parts])
    for chunk, row in zip(batch.chunks, batch.first_rows, strict=True):
        rows = slice(row, row + chunk.num_tokens)
        assert batch.token_ids_T[rows].tolist() == chunk.token_ids
        assert batch.positions_T[rows].tolist() == list(range(chunk.start, chunk.start + chunk.num_tokens))
    rows_of = {
        id(c.sequence): range(row + c.num_known - 1, row + c.num_tokens)
        for c, row in zip(batch.chunks, batch.first_rows, strict=True)
    }
    assert batch.sample_rows.tolist() == [
        row for chunk in picked if chunk.samples for row in rows_of[id(chunk.sequence)]
    ]


@pytest.mark.parametrize("choice", KERNELS)
def test_tokens_are_the_oracles_with_two_parts_in_flight(choice: KernelChoice) -> None:
    kernels, requests = choose_kernels(choice, "cpu"), mixed_requests()
    model = random_model(kernels=kernels)
    num_parts: list[int] = []
    forward_parts = model.forward_parts

    def counted(parts: Sequence[Part]) -> Tensor:
        num_parts.append(len(parts))
        return forward_parts(parts)

    model.forward_parts = counted  # type: ignore[method-assign]
    runner = ModelRunner(model, make_cache(model.config, 64, 4, kernels), attention_plan(kernels), Overlap(2))
    engine = tiny_engine(model, runner=runner)
    for request in requests:
        engine.submit(request)
    check_all(drain(engine, 20_000), requests, REFERENCE)
    assert set(num_parts) == {1, 2}
