"""Experts that newer tools stack in one tensor of a layer, gate before up, are the same experts."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_model.checkpoint.reader import Checkpoint
from tests.families.cases import CASES

NAMES = (
    "qwen3_moe",
    "qwen2_moe",
    "olmoe",
    "flex_olmo",
    "ernie4_5_moe",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe",
)


def stacked(tensors: Mapping[str, Tensor], n_experts: int) -> dict[str, Tensor]:
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    layers = {name.split(".experts.")[0] for name in tensors.keys() - found.keys()}
    for layer in layers:

        def all_of(part: str, layer: str = layer) -> Tensor:
            names = [f"{layer}.experts.{expert}.{part}_proj.weight" for expert in range(n_experts)]
            return torch.stack([tensors[name] for name in names])

        found[f"{layer}.experts.gate_up_proj"] = torch.cat([all_of("gate"), all_of("up")], dim=1)
        found[f"{layer}.experts.down_proj"] = all_of("down")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_stacked_experts_are_the_same(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    source = case.write(case.make_model(), tmp_path, max_shard_size="1GB")
    apart = Checkpoint.open(source)
    places = [(layer, expert) for layer in apart.config.moe_layers for expert in (0, 3, 6)]
    expected = {place: apart.read_expert(*place) for place in places}
    file = source / "model.safetensors"
    save_file(stacked(load_file(file), apart.config.n_experts), file)
    together = Checkpoint.open(source)
    for place in places:
        found = together.read_expert(*place)
        assert found.keys() == expected[place].keys()
        for part, tensor in found.items():
            assert torch.equal(tensor, expected[place][part]), (place, part)
