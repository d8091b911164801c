"""The dense layers against their formulas in float64.

Shapes: T tokens, D d_model, H heads, d head size, S positions.
"""

import math

import pytest
import torch

from moe_model.kernels.linear import TorchLinear as Linear
from moe_model.layers.attention import AttentionForm
from moe_model.layers.dense import Embedding, FusedAttention, sinusoidal_positions

FORM = AttentionForm(1 / math.sqrt(2))


@pytest.mark.parametrize("d_model", [1, 2, 7, 64])
def test_positions_are_sines_and_cosines(d_model: int) -> None:
    table_SD = sinusoidal_positions(40, d_model)
    assert table_SD.shape == (40, d_model)
    for position in (0, 1, 39):
        for column in range(d_model):
            angle = position / 10000 ** (column // 2 * 2 / d_model)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert table_SD[position, column].item() == pytest.approx(expected, abs=1e-5)


def test_embedding_adds_the_row_of_the_position() -> None:
    weight_VD, positions_SD = torch.randn(5, 4), torch.randn(3, 4)
    ids_T, positions_T = torch.tensor([4, 0, 4]), torch.tensor([0, 2, 1])
    with_positions = Embedding(weight_VD, positions_SD)(ids_T, positions_T)
    assert torch.equal(with_positions, weight_VD[ids_T] + positions_SD[positions_T])
    assert torch.equal(Embedding(weight_VD)(ids_T, positions_T), weight_VD[ids_T])


def test_fused_projection_is_laid_out_as_query_key_value_of_heads() -> None:
    weight = torch.randn(12, 4)
    attention = FusedAttention(Linear(weight), Linear(torch.eye(4)), n_heads=2, n_kv_heads=2, form=FORM)
    x_TD = torch.randn(5, 4)
    rows_T3Hd = (x_TD @ weight.T).view(5, 3, 2, 2)
    q_THd, kept = attention.project(x_TD, torch.arange(5))
    for part, projected in enumerate((q_THd, *kept)):
        torch.testing.assert_close(projected, rows_T3Hd[:, part])


def test_merge_undoes_the_split_into_heads_and_adds_the_residual() -> None:
    attention = FusedAttention(
        Linear(torch.randn(12, 4)), Linear(torch.eye(4)), n_heads=2, n_kv_heads=2, form=FORM
    )
    o_TD, x_TD = torch.randn(5, 4), torch.randn(5, 4)
    torch.testing.assert_close(attention.merge(o_TD.view(5, 2, 2), x_TD), x_TD + o_TD)
