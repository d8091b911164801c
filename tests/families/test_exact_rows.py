"""Of which products rows are not rounded to bfloat16: those that make queries, keys and values."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import LatentAttention
from moe_model.families import family_of
from moe_model.kernels.base import HeadLinear, Linear, Norm
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.layers.specs import Activation
from moe_model.names import WeightForm
from tests.families.cases import CASES
from tests.models import TINY, random_weights


class Recording(TorchKernels):
    """Keeps the shapes of the weights whose rows are wanted exact."""

    def __init__(self) -> None:
        super().__init__()
        self.exact: list[tuple[int, ...]] = []

    def linear(
        self,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        activation: Activation = "none",
        norm: Norm | None = None,
        *,
        form: WeightForm = "model",
        exact_rows: bool = False,
    ) -> Linear:
        self.exact += [tuple(weight_OI.shape)] * exact_rows
        return super().linear(weight_OI, bias_O, activation, norm, form=form)

    def head_linear(self, weight_HOI: Tensor, *, exact_rows: bool = False) -> HeadLinear:
        self.exact += [tuple(weight_HOI.shape)] * exact_rows
        return super().head_linear(weight_HOI)


def exact_shapes(config: ModelConfig, shared: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    kernels = Recording()
    family_of(config).build_shared(config, shared, kernels)
    return kernels.exact


def in_a_layer(config: ModelConfig) -> list[tuple[int, ...]]:
    """In the order in which a layer asks for them."""
    family, width, heads = family_of(config), config.d_model, config.n_heads
    attention = family.spec(config).attention if isinstance(family, DecoderFamily) else None
    if not isinstance(attention, LatentAttention):
        return [((heads + 2 * config.n_kv_heads) * config.head_dim, width)]
    plain, turning, latent = attention.plain_width, attention.rotary.dim, attention.latent_rank
    queries, rank = heads * (plain + turning), attention.query_rank
    made = [(queries, width)] if rank is None else [(queries, rank), (rank, width)]
    return [*made, (latent + turning, width), (heads, latent, plain)]


@pytest.mark.parametrize("name", CASES)
def test_of_each_family(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    checkpoint = Checkpoint.open(case.write(case.make_model(), tmp_path))
    found = exact_shapes(checkpoint.config, checkpoint.take_shared(checkpoint.dtype, "cpu"))
    assert found == in_a_layer(checkpoint.config) * checkpoint.config.n_layers


def test_of_modularforge() -> None:
    assert exact_shapes(TINY, random_weights(TINY).shared) == in_a_layer(TINY) * TINY.n_layers
