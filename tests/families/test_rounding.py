"""In bfloat16 each family rounds where transformers does: norms and turned heads have the same bits.

Float32 cannot see it, and near ties of bfloat16 tokens hang on it. Shapes: R rows, D d_model, H heads, d head
size.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import LatentAttention
from moe_model.families import family_of
from moe_model.kernels.torch_kernels import TorchKernels
from tests.families.case import Case
from tests.families.cases import CASES

NUM_ROWS = 50
POSITIONS_R = torch.arange(100, 100 + NUM_ROWS)


def write(case: Case, folder: Path) -> tuple[Any, Checkpoint]:
    """In float32, as its angles have to be."""
    model = case.make_model()
    return model, Checkpoint.open(case.write(model, folder))


@pytest.mark.parametrize("name", CASES)
def test_norms_round_as_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, checkpoint = write(CASES[name], tmp_path)
    tensors = checkpoint.take_shared(torch.bfloat16, "cpu")
    shared = family_of(checkpoint.config).build_shared(checkpoint.config, tensors, TorchKernels())
    norm = shared.blocks[0].ffn_norm or getattr(shared.blocks[0].join, "norm", None)
    assert norm is not None
    x_RD = 3 * torch.randn(NUM_ROWS, checkpoint.config.d_model).bfloat16()
    layer = model.bfloat16().model.layers[0]
    theirs = getattr(layer, "post_feedforward_layernorm", layer.post_attention_layernorm)
    assert torch.equal(norm(x_RD), theirs(x_RD))


@pytest.mark.parametrize("name", CASES)
def test_turned_heads_round_as_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, checkpoint = write(CASES[name], tmp_path)
    family, config = family_of(checkpoint.config), checkpoint.config
    assert isinstance(family, DecoderFamily)
    x_RHd = torch.randn(NUM_ROWS, 3, turning_width(family, config)).bfloat16()
    ours_RHd = TorchKernels().rotary(family.spec(config).attention.rotary)(x_RHd.clone(), POSITIONS_R)
    expected_RHd = turned(model, x_RHd)
    if family.name == "deepseek_v3":
        # The library leaves the numbers of a pair apart.
        ours_RHd = torch.cat([ours_RHd[..., 0::2], ours_RHd[..., 1::2]], dim=-1)
    # Of complex numbers the library's processor may add with one rounding less, in float32: one value in
    # thousands is next to a tie. Of values that are rounded at another place a tenth and more differ.
    assert float((ours_RHd != expected_RHd).float().mean()) < 0.005


def turning_width(family: DecoderFamily, config: ModelConfig) -> int:
    attention = family.spec(config).attention
    return attention.rotary.dim if isinstance(attention, LatentAttention) else config.head_dim


def turned(model: Any, x_RHd: Tensor) -> Tensor:
    """By the library's own function, whose name is another one in some families."""
    module = sys.modules[type(model).__module__]
    names = ("apply_rotary_pos_emb_interleave", "apply_rotary_pos_emb", "apply_rotary_emb")
    turn = next(getattr(module, name) for name in names if hasattr(module, name))
    angles = model.model.rotary_emb(x_RHd, POSITIONS_R[None])
    x_1HRd = x_RHd.transpose(0, 1)[None]
    found, _ = turn(x_1HRd, x_1HRd, *(angles if isinstance(angles, tuple) else (angles,)))
    turned_RHd: Tensor = found[0].transpose(0, 1)
    return turned_RHd
