"""What a model takes, against its tensors."""

import pytest
import torch

from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.footprint import PROCESS_BYTES, footprint
from moe_model.names import WeightForm

CONFIG = ModelConfig(d_model=16, n_heads=2, n_layers=3, d_ff=24, n_experts=5, top_k=2, vocab_size=40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_tensors(dtype: torch.dtype) -> None:
    family, generator = family_of(CONFIG), torch.Generator().manual_seed(0)
    shared = [tensor.to(dtype) for tensor in family.init_shared(CONFIG, generator).values()]
    expert = [tensor.to(dtype) for tensor in family.init_expert(CONFIG, generator).values()]
    found = footprint(CONFIG, dtype)
    packed_head, float32_routers = 40 * 16 * dtype.itemsize, 3 * 5 * 16 * 4
    assert found.shared_bytes == sum(tensor.nbytes for tensor in shared) + packed_head + float32_routers
    assert found.expert_bytes == sum(tensor.nbytes for tensor in expert)
    assert found.experts_bytes == 15 * found.expert_bytes
    assert found.cache_bytes_per_token == 3 * 2 * 16 * dtype.itemsize
    assert found.worker_bytes(2) == 8 * found.expert_bytes + PROCESS_BYTES
    assert found.coordinator_bytes(100) == (
        found.shared_bytes + 100 * found.cache_bytes_per_token + PROCESS_BYTES
    )


def test_an_untied_head_is_there_once() -> None:
    untied = ModelConfig(vocab_size=40, tie_embedding=False)
    tied = ModelConfig(vocab_size=40)
    assert footprint(untied, torch.float32).shared_bytes == footprint(tied, torch.float32).shared_bytes


def test_int8_takes_a_byte_a_value_and_a_scale_an_output() -> None:
    found = footprint(CONFIG, torch.float32, "int8").expert_bytes
    assert found == 2 * 16 * 24 + 4 * (16 + 24) + 4 * (16 + 24 + 2 * 16)


@pytest.mark.parametrize(("form", "block_bytes"), [("q8", 34), ("q4", 18)])
def test_a_block_takes_a_scale_of_two_bytes(form: WeightForm, block_bytes: int) -> None:
    """16 and 24 inputs are a block each."""
    found = footprint(CONFIG, torch.bfloat16, form).expert_bytes
    assert found == block_bytes * (16 + 24) + 2 * (16 + 24 + 2 * 16)


@pytest.mark.parametrize(
    ("form", "blocks_bytes"), [("mxfp4", 17 * (16 + 24)), ("fp8", 2 * 16 * 24 + 4 * (16 + 24))]
)
def test_stored_forms_take_a_scale_for_each_block_of_an_output(form: WeightForm, blocks_bytes: int) -> None:
    """Of mxfp4 a byte, of fp8 four."""
    found = footprint(CONFIG, torch.bfloat16, form).expert_bytes
    assert found == blocks_bytes + 2 * (16 + 24 + 2 * 16)


def test_the_other_matrices_are_rounded_but_for_routers_and_what_is_looked_up() -> None:
    plain = footprint(CONFIG, torch.bfloat16).shared_bytes
    rounded = footprint(CONFIG, torch.bfloat16, shared_form="q8").shared_bytes
    head, attention = 40, 3 * (3 * 16 + 16)
    assert plain - rounded == (head + attention) * (2 * 16 - 34)
