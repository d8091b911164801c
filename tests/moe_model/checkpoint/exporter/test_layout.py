"""Of which tensors of ours one of a folder consists."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from moe_model.checkpoint.exporter.layout import Layout, Piece
from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.families.gpt_oss.config import FULL, GptOssConfig
from moe_model.families.hugging_face import Part
from moe_model.families.minimax_m2.config import MiniMaxConfig

GATE, UP = torch.arange(6.0).view(3, 2), 10 + torch.arange(6.0).view(3, 2)
TENSORS = {"gate": GATE, "up": UP}
CONFIG = ModelConfig(d_model=8, n_heads=2, n_layers=2, d_ff=6, n_experts=3, vocab_size=20)
SHAPES: dict[str, tuple[int, ...]] = {"gate": (3, 2), "up": (3, 2)}
HALVES: Mapping[Part, str] = {"second_half": "up", "first_half": "gate"}
ALTERNATE: Mapping[Part, str] = {"odd": "up", "even": "gate"}


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ({"all": "up"}, UP),
        (HALVES, torch.tensor([[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]])),
        (ALTERNATE, torch.tensor([[0, 1], [10, 11], [2, 3], [12, 13], [4, 5], [14, 15]])),
    ],
)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_rows_are_put_together(ours: Mapping[Part, str], expected: torch.Tensor, is_transposed: bool) -> None:
    piece = Piece("theirs", None, ours, is_transposed)
    wanted = expected.t() if is_transposed else expected
    assert torch.equal(piece.of(TENSORS), wanted)
    assert piece.of(TENSORS).is_contiguous()
    assert piece.shape(SHAPES) == tuple(wanted.shape)


def test_stacked_tensors_are_planned_whole() -> None:
    """As gpt-oss has them: all experts of a layer, inputs x outputs; biases by their rows."""
    config = replace(CONFIG, family="gpt_oss", own=GptOssConfig(layer_types=(FULL, FULL)))
    names = family_of(config).hugging_face
    assert names is not None
    planned = Layout(config, names, torch.bfloat16).tensors()
    experts = {name: each for name, each in planned.items() if name.startswith("model.layers.1.mlp.experts.")}
    assert {name.rpartition(".")[2]: each.full_shape for name, each in experts.items()} == {
        "gate_up_proj": (3, 8, 12),
        "gate_up_proj_bias": (3, 12),
        "down_proj": (3, 6, 8),
        "down_proj_bias": (3, 8),
    }
    assert {each.dtype for each in planned.values()} == {torch.bfloat16}


def test_what_a_family_keeps_in_float32_stays_so() -> None:
    config = replace(CONFIG, family="minimax_m2", own=MiniMaxConfig())
    names = family_of(config).hugging_face
    assert names is not None
    planned = Layout(config, names, torch.bfloat16).tensors()
    kept = {name for name, each in planned.items() if each.dtype == torch.float32}
    assert kept == {f"model.layers.{layer}.block_sparse_moe.e_score_correction_bias" for layer in range(2)}
