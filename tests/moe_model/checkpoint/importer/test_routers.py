"""Routers for a folder of parts.

Shapes: D d_model, E experts.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from moe_model.checkpoint.importer.routers import make_routers
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError
from tests.moe_model.source_files import TINY, assert_same, state_dict

GATE_0, GATE_1 = (f"moe_layers.{layer}.router.gate.weight" for layer in (0, 1))
NORM = "moe_layers.1.ffn_norm.bias"
SHAPE_ED = (TINY.n_experts, TINY.d_model)


def make(choice: str | Path, config: ModelConfig = TINY, seed: int = 0) -> dict[str, Tensor]:
    return dict(make_routers(str(choice), config, seed, torch.float32).tensors)


def gates_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "router.gate" in name}


def norms_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".ffn_norm." in name}


PLAIN_NORMS = {
    f"moe_layers.{layer}.ffn_norm.{part}": torch.full((TINY.d_model,), fill)
    for layer in range(TINY.n_layers)
    for part, fill in (("weight", 1.0), ("bias", 0.0))
}


def test_uniform_is_zeros() -> None:
    assert_same(make("uniform"), {GATE_0: torch.zeros(SHAPE_ED), GATE_1: torch.zeros(SHAPE_ED)} | PLAIN_NORMS)


def test_kaiming_has_its_bound_and_its_seed() -> None:
    config = ModelConfig(d_model=64, n_heads=4, n_layers=3, n_experts=200)
    gates = gates_of(make("kaiming", config))
    bound = (6 / (1.0001 * 64)) ** 0.5
    for gate_ED in gates.values():
        assert gate_ED.shape == (200, 64)
        assert 0.99 * bound < gate_ED.max() <= bound
        assert -bound <= gate_ED.min() < -0.99 * bound
    assert len({gate_ED[0, 0].item() for gate_ED in gates.values()}) == 3
    assert_same(gates_of(make("kaiming", config)), gates)
    other = gates_of(make("kaiming", config, seed=1))
    assert not any(torch.equal(other[name], gate_ED) for name, gate_ED in gates.items())


def _save_torch(path: Path, obj: object) -> Path:
    torch.save(obj, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def _save_safetensors(path: Path, tensors: dict[str, Tensor]) -> Path:
    safetensors.torch.save_file(tensors, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("save", [_save_torch, _save_safetensors])
def test_gates_from_a_file(tmp_path: Path, save: Callable[[Path, dict[str, Tensor]], Path]) -> None:
    gates = gates_of(state_dict(TINY))
    assert_same(make(save(tmp_path / "router", gates)), gates | PLAIN_NORMS)


def test_norms_come_along_where_the_file_has_them(tmp_path: Path) -> None:
    tensors = state_dict(TINY)
    expected = gates_of(tensors) | {name: tensors[name] for name in PLAIN_NORMS}
    for obj in (expected, tensors, {"model_state_dict": tensors, "config": {}}):
        assert_same(make(_save_torch(tmp_path / "router", obj)), expected)
    assert "is from there too" in make_routers(str(tmp_path / "router.pt"), TINY, 0, torch.float32).note


@pytest.mark.parametrize(
    "wrap",
    [lambda t: t, lambda t: {"any": t}, lambda t: {"partition_centroids": t, "names": ["a", "b", "c"]}],
)
def test_one_tensor_of_centroids_is_for_every_layer(tmp_path: Path, wrap: Callable[[Tensor], object]) -> None:
    centroids_ED = torch.randn(SHAPE_ED)
    expected = {GATE_0: centroids_ED, GATE_1: centroids_ED} | PLAIN_NORMS
    assert_same(make(_save_torch(tmp_path / "router", wrap(centroids_ED))), expected)


def test_named_centroids_among_others(tmp_path: Path) -> None:
    centroids_ED = torch.randn(SHAPE_ED)
    path = _save_safetensors(tmp_path / "r", {"partition_centroids": centroids_ED, "counts": torch.ones(3)})
    assert torch.equal(make(path)[GATE_1], centroids_ED)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({GATE_0: torch.ones(SHAPE_ED)}, f"tensor '{GATE_1}' is missing"),
        ({GATE_0: torch.ones(SHAPE_ED), GATE_1: torch.ones(SHAPE_ED[::-1])}, f"'{GATE_1}' has shape"),
        ({GATE_0: torch.ones(SHAPE_ED), GATE_1: torch.ones(SHAPE_ED).int()}, "not of a floating dtype"),
        ({GATE_0: torch.ones(SHAPE_ED), GATE_1: torch.full(SHAPE_ED, torch.nan)}, "not finite"),
        (
            {GATE_0: torch.ones(SHAPE_ED), GATE_1: torch.ones(SHAPE_ED), NORM: torch.ones(8)},
            "tensor 'moe_layers.0.ffn_norm.bias' is missing",
        ),
        (
            {
                GATE_0: torch.ones(SHAPE_ED),
                GATE_1: torch.ones(SHAPE_ED),
                GATE_1.replace("1", "2"): torch.ones(1),
            },
            "unknown tensor 'moe_layers.2.router.gate.weight'",
        ),
        ({"any": torch.ones(SHAPE_ED[::-1])}, r"'any' has shape \[8, 3\], expected \[3, 8\]"),
        ({"a": torch.ones(SHAPE_ED), "b": torch.ones(SHAPE_ED)}, "nor one tensor of centroids"),
        ({}, "nor one tensor of centroids"),
        ({"partition_centroids": "x"}, "'partition_centroids' is not a dense tensor"),
        ([1, 2], "expected a state dict, got list"),
    ],
)
def test_refuses_a_file_that_has_no_routers_for_this_model(
    tmp_path: Path, tensors: object, reason: str
) -> None:
    path = _save_torch(tmp_path / "router", tensors)
    with pytest.raises(CheckpointError, match=reason) as raised:
        make(path)
    assert str(path) in str(raised.value)


def test_a_router_that_is_neither_a_choice_nor_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="kaimin: is not a file"):
        make(tmp_path / "kaimin")
