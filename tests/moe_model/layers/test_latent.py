"""Latent attention, which never makes keys and values of heads, against the same with them, in float64.

Shapes: T tokens, D d_model, H heads; of a head p plain, r turning, v value numbers; c latent numbers.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moe_model.assembled import dense_attention
from moe_model.decoder.build_latent import LatentBuilder
from moe_model.decoder.spec import LatentAttention
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import HAS_NATIVE, choose_kernels
from moe_model.layers.dense import Attention, ScaledJoin
from moe_model.layers.latent import AbsorbedAttention
from moe_model.layers.rotary import rotary_rates
from moe_model.layers.specs import NormSpec, RotarySpec
from tests.native import KERNELS

T, D, H = 11, 18, 3
SPEC = LatentAttention(
    scale=0.37,
    rotary=RotarySpec(4, 100.0, "interleaved"),
    query_rank=7,
    latent_rank=9,
    plain_width=5,
    value_width=6,
    has_biases=True,
)
SPECS = {
    "two products": SPEC,
    "one product": replace(SPEC, query_rank=None),
    "no biases": replace(SPEC, has_biases=False),
    "halves turn": replace(SPEC, rotary=RotarySpec(4, 100.0, "half_split")),
    "values as wide as keys": replace(SPEC, value_width=9),
}
NORM = NormSpec("rms_norm", 1e-5)


@pytest.fixture(scope="module", params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return choose_kernels(request.param, "cpu", 1)


def make_tensors(spec: LatentAttention) -> dict[str, Tensor]:
    plain, turning = spec.plain_width, spec.rotary.dim
    num_q, kept = H * (plain + turning), spec.latent_rank + turning
    shapes: dict[str, tuple[int, ...]] = {
        "kv_down.weight": (kept, D),
        "kv_norm.weight": (spec.latent_rank,),
        "kv_up.weight": (H * (plain + spec.value_width), spec.latent_rank),
        "out.weight": (D, H * spec.value_width),
    }
    if spec.query_rank is None:
        shapes["q.weight"] = (num_q, D)
    else:
        rank = spec.query_rank
        shapes |= {"q_down.weight": (rank, D), "q_norm.weight": (rank,), "q_up.weight": (num_q, rank)}
    if spec.has_biases:
        shapes |= {"kv_down.bias": (kept,), "out.bias": (D,)}
        if spec.query_rank is not None:
            shapes["q_down.bias"] = (spec.query_rank,)
    generator = torch.Generator().manual_seed(0)
    return {
        f"blocks.0.{name}": 0.6 * torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }


def build(spec: LatentAttention, tensors: dict[str, Tensor], kernels: Kernels) -> Attention:
    weight_D = torch.linspace(0.5, 1.5, D)
    return LatentBuilder(spec, H, tensors, kernels).build(0, kernels.norm(NORM, weight_D), None)


def expanded(spec: LatentAttention, tensors: dict[str, Tensor], x_TD: Tensor, positions_T: Tensor) -> Tensor:
    """Keys and values of every head are written out, as section 2.1 of the paper has them."""
    found = {name.removeprefix("blocks.0."): tensor.double() for name, tensor in tensors.items()}
    plain, turning = spec.plain_width, spec.rotary.dim

    def product(rows: Tensor, name: str) -> Tensor:
        bias = found.get(f"{name}.bias")
        return rows @ found[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rows / (rows.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    def turned(rows_THr: Tensor) -> Tensor:
        angles_T1P = (positions_T[:, None].double() * rotary_rates(spec.rotary).double())[:, None]
        if spec.rotary.pairing == "interleaved":
            a, b = rows_THr[..., 0::2], rows_THr[..., 1::2]
        else:
            a, b = rows_THr[..., : turning // 2], rows_THr[..., turning // 2 :]
        cos, sin = angles_T1P.cos(), angles_T1P.sin()
        # In another order than they came in: scores do not depend on it.
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    x_TD = x_TD.double()
    n_TD = norm(x_TD, torch.linspace(0.5, 1.5, D).double(), NORM.eps)
    if spec.query_rank is None:
        q = product(n_TD, "q")
    else:
        q = product(norm(product(n_TD, "q_down"), found["q_norm.weight"], 1e-6), "q_up")
    q_plain, q_turning = torch.split(q.view(len(x_TD), H, -1), [plain, turning], dim=-1)
    latent, key = torch.split(product(n_TD, "kv_down"), [spec.latent_rank, turning], dim=-1)
    heads = product(norm(latent, found["kv_norm.weight"], 1e-6), "kv_up").view(len(x_TD), H, -1)
    k_plain, v_THv = torch.split(heads, [plain, spec.value_width], dim=-1)
    k_turning = turned(key[:, None]).expand(-1, H, -1)
    q_THd = torch.cat([q_plain, turned(q_turning)], dim=-1)
    k_THd = torch.cat([k_plain, k_turning], dim=-1)
    scores_HTS = torch.einsum("thd,shd->hts", q_THd, k_THd) * spec.scale
    hidden_TS = torch.ones(len(x_TD), len(x_TD)).triu(1) > 0
    weights_HTS = scores_HTS.masked_fill(hidden_TS, float("-inf")).softmax(-1)
    return x_TD + product(torch.einsum("hts,shv->thv", weights_HTS, v_THv).flatten(1), "out")


@pytest.mark.parametrize("name", SPECS)
def test_it_is_attention_to_keys_and_values_of_heads(kernels: Kernels, name: str) -> None:
    spec = SPECS[name]
    tensors, positions_T = make_tensors(spec), torch.arange(T) * 37
    x_TD = torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    attention = build(spec, tensors, kernels)
    q_THd, kept = attention.project(x_TD, positions_T)
    o_THc = dense_attention(1, T, None)(0, attention.form, q_THd, kept)
    got_TD = attention.merge(o_THc, x_TD)
    torch.testing.assert_close(got_TD.double(), expanded(spec, tensors, x_TD, positions_T), rtol=0, atol=2e-5)


def test_a_token_keeps_one_latent_and_one_turned_key(kernels: Kernels) -> None:
    tensors = make_tensors(SPEC)
    attention = build(SPEC, tensors, kernels)
    x_TD = torch.randn(1, D).repeat(2, 1)
    q_THd, (latent_T1d,) = attention.project(x_TD, torch.tensor([0, 9]))
    assert q_THd.shape == (2, H, 13)
    assert latent_T1d.shape == (2, 1, 13)
    assert torch.equal(latent_T1d[0, :, :9], latent_T1d[1, :, :9]), "the latent does not turn"
    assert not torch.allclose(latent_T1d[0, :, 9:], latent_T1d[1, :, 9:])
    squares = (latent_T1d[0, 0, :9] / tensors["blocks.0.kv_norm.weight"]).square()
    assert float(squares.mean()) == pytest.approx(1.0, abs=1e-4), "it is kept after its norm"


@pytest.mark.skipif(not HAS_NATIVE, reason="torch's products promise no bits")
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_every_company(dtype: torch.dtype, num_threads: int) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in make_tensors(SPEC).items()}
    attention = build(SPEC, tensors, choose_kernels("native", "cpu", num_threads))
    x_TD, o_THc, positions_T = torch.randn(T, D), torch.randn(T, H, SPEC.latent_rank), torch.arange(T)
    q_THd, (latent_T1d,) = attention.project(x_TD, positions_T)
    merged_TD = attention.merge(o_THc, x_TD)
    for row in (slice(0, 1), slice(3, 4), slice(2, 9)):
        q, (latent,) = attention.project(x_TD[row], positions_T[row])
        assert torch.equal(q, q_THd[row])
        assert torch.equal(latent, latent_T1d[row])
        assert torch.equal(attention.merge(o_THc[row], x_TD[row]), merged_TD[row])


def test_a_join_takes_what_attention_says(kernels: Kernels) -> None:
    """Of families that multiply it, or have a norm after it."""
    plain = build(SPEC, make_tensors(SPEC), kernels)
    assert isinstance(plain, AbsorbedAttention)
    o_THc, x_TD = torch.randn(T, H, SPEC.latent_rank), torch.randn(T, D)
    said_TD = plain.merge(o_THc, torch.zeros(T, D))
    got_TD = replace(plain, join=ScaledJoin(0.5)).merge(o_THc, x_TD)
    torch.testing.assert_close(got_TD, x_TD + 0.5 * said_TD)
    assert isinstance(replace(plain, norm=None).project(x_TD, torch.arange(T))[0], Tensor)


def test_bfloat16_weights_stay_so() -> None:
    """Splitting them by head makes nothing wider."""
    tensors = {name: tensor.bfloat16() for name, tensor in make_tensors(SPEC).items()}
    kernels = choose_kernels("torch", "cpu", 1)
    attention = LatentBuilder(SPEC, H, tensors, kernels).build(0, None, None)
    x_TD = torch.randn(T, D).bfloat16()
    q_THd, kept = attention.project(x_TD, torch.arange(T))
    o_THc = dense_attention(1, T, None)(0, attention.form, q_THd, kept)
    assert attention.merge(o_THc, x_TD).dtype == q_THd.dtype == kept[0].dtype == torch.bfloat16
