"""The roofline: bytes while few rows share the weights, arithmetic when many do."""

import pytest
import torch

from benchmarks.physics import Machine, decode_floor_seconds
from moe_model.config import ModelConfig
from moe_model.families import family_of

CONFIG = ModelConfig()
ACTIVE = family_of(CONFIG).num_active_params_per_token(CONFIG)


def test_one_sequence_reads_every_active_weight_once() -> None:
    machine = Machine(1, read_bytes_per_second=1e9, flops_per_second=1e15)
    assert decode_floor_seconds(CONFIG, torch.bfloat16, machine) == pytest.approx(2 * ACTIVE / 1e9)
    assert decode_floor_seconds(CONFIG, torch.float32, machine) == pytest.approx(4 * ACTIVE / 1e9)


def test_many_sequences_read_all_experts_and_no_more() -> None:
    machine = Machine(1, read_bytes_per_second=1e9, flops_per_second=1e18)
    per_expert = (family_of(CONFIG).num_params(CONFIG) - ACTIVE) / (CONFIG.n_layers * (CONFIG.n_experts - 2))
    most = ACTIVE + CONFIG.n_layers * (CONFIG.n_experts - CONFIG.top_k) * per_expert
    assert decode_floor_seconds(CONFIG, torch.bfloat16, machine, 1000) == pytest.approx(
        2 * most / 1e9, rel=1e-3
    )


def test_arithmetic_is_the_limit_where_it_takes_longer() -> None:
    machine = Machine(1, read_bytes_per_second=1e15, flops_per_second=1e9)
    assert decode_floor_seconds(CONFIG, torch.float32, machine, 64) == pytest.approx(2 * ACTIVE * 64 / 1e9)
