"""LocalExperts against the plain sum over each token's experts.

Shapes: T tokens, D d_model, K experts per token.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model import ModelConfig
from moe_model.kernels.linear import TorchLinear as Linear
from moe_model.layers.router import Routing, RuledRouter
from moe_model.layers.router_rules import SoftmaxOfTopK
from tests.models import build_experts, local_experts, random_weights


@pytest.mark.parametrize(("n_experts", "top_k"), [(1, 1), (5, 1), (5, 3), (5, 5), (7, 2)])
@pytest.mark.parametrize("num_tokens", [1, 2, 13])
def test_equals_the_plain_sum(n_experts: int, top_k: int, num_tokens: int) -> None:
    config = ModelConfig(
        d_model=16, n_heads=2, n_layers=2, d_ff=24, n_experts=n_experts, top_k=top_k, vocab_size=9
    )
    weights = random_weights(config)
    backend = local_experts(config, build_experts(config, weights))
    x_TD = torch.randn(num_tokens, 16)
    routing = RuledRouter(Linear(torch.randn(n_experts, 16)), SoftmaxOfTopK(), top_k)(x_TD)
    for layer in range(2):
        y_TD = backend.forward(layer, x_TD, routing)
        for token in range(num_tokens):
            expected_D = _plain_sum(weights.experts, layer, x_TD[token], routing, token)
            torch.testing.assert_close(y_TD[token].double(), expected_D, rtol=1e-4, atol=1e-4)


def test_a_bfloat16_model_gets_bfloat16_back() -> None:
    config = ModelConfig(d_model=16, n_heads=2, n_layers=1, d_ff=24, n_experts=3, top_k=2, vocab_size=9)
    weights = random_weights(config)
    for tensors in weights.experts.values():
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})
    backend = local_experts(config, build_experts(config, weights))
    x_TD = torch.randn(4, 16).bfloat16()
    routing = RuledRouter(Linear(torch.randn(3, 16)), SoftmaxOfTopK(), 2)(x_TD)
    y_TD = backend.forward(0, x_TD, routing)
    assert y_TD.dtype == torch.bfloat16
    expected_D = _plain_sum(weights.experts, 0, x_TD[1], routing, 1)
    torch.testing.assert_close(y_TD[1].double(), expected_D, rtol=0.05, atol=0.1)


def _plain_sum(
    experts: dict[tuple[int, int], dict[str, Tensor]], layer: int, x_D: Tensor, routing: Routing, token: int
) -> Tensor:
    """Σ_k weight_k · fc2(GELU(fc1(norm(x)))) in float64."""
    total_D = torch.zeros(len(x_D), dtype=torch.float64)
    ids, weights = routing.expert_ids_TK[token].tolist(), routing.weights_TK[token].double()
    for weight, expert in zip(weights, ids, strict=True):
        t = {name: tensor.double() for name, tensor in experts[layer, expert].items()}
        n_D = F.layer_norm(x_D.double(), x_D.shape, t["norm.weight"], t["norm.bias"])
        up_F = F.gelu(t["fc1.weight"] @ n_D + t["fc1.bias"])
        total_D += weight * (t["fc2.weight"] @ up_F + t["fc2.bias"])
    return total_D
