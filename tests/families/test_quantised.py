"""Folders in 8 and 4 bits, and with stacked experts: the same model as its plain twin, whatever the layout.

Twins are written by transformers; what takes the place of a matrix is drawn here, and the twin gets what it
stands for: by transformers' own dequantiser, or by the formula.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from moe_model.checkpoint.hugging_face.quantised import BlockFp8
from moe_model.checkpoint.importer import import_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from tests.families.cases import CASES
from tests.moe_model.checkpoint.hugging_face.test_stored import e4m3, scaled

Tensors = dict[str, Tensor]
# A folder in another layout, and its twin, from the tensors of a plain one.
Twins = Callable[[Tensors], tuple[Tensors, Tensors]]
GENERATOR = torch.Generator().manual_seed(0)
BLOCK = BlockFp8(16, 24)
FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK.rows, BLOCK.columns],
}


def fp8(plain: Tensors) -> tuple[Tensors, Tensors]:
    """All projections, as published: not routers, norms, embeddings and the head."""
    stored, twin = dict(plain), dict(plain)
    for name, tensor in plain.items():
        if tensor.dim() < 2 or name.endswith(("embed_tokens.weight", "lm_head.weight", ".gate.weight")):
            continue
        rows, columns = tensor.shape
        values = e4m3(rows, columns)
        grid = -(-rows // BLOCK.rows), -(-columns // BLOCK.columns)
        scale = torch.rand(grid, generator=GENERATOR) / 2048
        stored |= {name: values, f"{name}_scale_inv": scale}
        twin[name] = scaled(values, scale, BLOCK)
    return stored, twin


def mxfp4(plain: Tensors) -> tuple[Tensors, Tensors]:
    """The experts of gpt-oss. Their rows are outputs, those of the twin inputs."""
    stored, twin = dict(plain), dict(plain)
    for name, tensor in plain.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        num_experts, num_in, num_out = tensor.shape
        shape = (num_experts, num_out, num_in // 32, 16)
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=GENERATOR)
        scales = torch.randint(115, 123, shape[:-1], dtype=torch.uint8, generator=GENERATOR)
        del stored[name]
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        twin[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return stored, twin


def stacked(plain: Tensors) -> tuple[Tensors, Tensors]:
    """Out x in, gate rows first: as some tools of transformers 5 write."""
    stored = {name: tensor for name, tensor in plain.items() if ".mlp.experts." not in name}
    for layer in sorted({name.split(".mlp.")[0] for name in plain.keys() - stored.keys()}):
        prefix = f"{layer}.mlp.experts"
        num_experts = sum(name.startswith(prefix) and "down" in name for name in plain)

        def part(name: str, prefix: str = prefix, num_experts: int = num_experts) -> Tensor:
            return torch.stack([plain[f"{prefix}.{e}.{name}_proj.weight"] for e in range(num_experts)])

        stored[f"{prefix}.gate_up_proj"] = torch.cat([part("gate"), part("up")], dim=1)
        stored[f"{prefix}.down_proj"] = part("down")
    return stored, dict(plain)


def stacked_fp8(plain: Tensors) -> tuple[Tensors, Tensors]:
    """Stacks whose every expert has blocks of its own; half of the rows end within one."""
    stored, _ = stacked(plain)
    for name, tensor in dict(stored).items():
        if ".mlp.experts." in name:
            *_, rows, columns = tensor.shape
            values = e4m3(*tensor.shape)
            grid = len(tensor), -(-rows // BLOCK.rows), -(-columns // BLOCK.columns)
            scale = torch.rand(grid, generator=GENERATOR) / 2048
            stored |= {name: values, f"{name}_scale_inv": scale}
    twin = {name: tensor for name, tensor in stored.items() if ".mlp.experts." not in name}
    for name, values in stored.items():
        if name.endswith((".gate_up_proj", ".down_proj")) and values.dtype == torch.float8_e4m3fn:
            twin[name] = scaled(values, stored[f"{name}_scale_inv"], BLOCK)
    return stored, twin


SIZES: Mapping[str, Mapping[str, Any]] = {"gpt_oss": {"hidden_size": 64, "intermediate_size": 96}}


@pytest.mark.parametrize(
    ("family", "layout", "quantization"),
    [
        ("gpt_oss", mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}),
        ("qwen3_moe", fp8, FP8),
        ("deepseek_v3", fp8, FP8),
        ("glm4_moe", fp8, FP8),
        ("minimax_m2", fp8, FP8),
        ("qwen3_moe", stacked, None),
        ("deepseek_v3", stacked, None),
        ("qwen3_moe", stacked_fp8, FP8),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)
def test_another_layout_is_the_same_model(
    family: str, layout: Twins, quantization: dict[str, Any] | None, tmp_path: Path
) -> None:
    case = CASES[family]
    case = replace(case, sizes={**case.sizes, **SIZES.get(family, {})})
    plain = case.write(case.make_model(), tmp_path / "plain", max_shard_size="1GB")
    tensors = load_file(plain / "model.safetensors")
    if quantization:
        # As all that is not quantised is published.
        tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    stored, twin = layout(tensors)
    config = json.loads((plain / "config.json").read_text())
    opened = []
    for name, tensors, quantised in (("stored", stored, quantization), ("twin", twin, None)):
        folder = tmp_path / name
        folder.mkdir()
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
        keys = {**config, "quantization_config": quantised} if quantised else config
        (folder / "config.json").write_text(json.dumps(keys))
        opened.append(Checkpoint.open(folder))
    check_same(*opened)
    opened[0].verify()
    assert opened[0].dtype == (torch.bfloat16 if quantization else torch.float32)
    import_checkpoint(tmp_path / "stored", tmp_path / "ours")
    ours = Checkpoint.open(tmp_path / "ours")
    expected = opened[1].read_expert(opened[1].config.moe_layers[-1], 0, ours.dtype)
    found = ours.read_expert(ours.config.moe_layers[-1], 0)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def check_same(stored: Checkpoint, twin: Checkpoint) -> None:
    """Bit for bit in float32."""
    config = stored.config
    assert config == twin.config
    modules = [(layer, expert) for layer in config.moe_layers for expert in config.experts_of(layer)]
    parts = [(stored.read_shared(torch.float32), twin.read_shared(torch.float32))]
    parts += [
        (stored.read_expert(*key, torch.float32), twin.read_expert(*key, torch.float32)) for key in modules
    ]
    for mine, other in parts:
        assert mine.keys() == other.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, other[name]), name
