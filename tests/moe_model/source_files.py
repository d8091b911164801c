"""Files as ModularForge writes them, of any shape, with random weights; and small checkpoints of ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor

from moe_model.checkpoint.random_model import module_generator
from moe_model.checkpoint.reader import CheckpointWriter, GenerationDefaults
from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.layers.dense import sinusoidal_positions
from moe_model.text.tokenizer_settings import UNSAID, TokenizerSettings

GOLDEN = Path(__file__).parents[1] / "data" / "modularforge-tiny"
TINY = ModelConfig(
    d_model=8, n_heads=2, n_layers=2, d_ff=12, n_experts=3, top_k=2, vocab_size=40, max_seq_len=16
)

StateDict = dict[str, Tensor]


def state_dict(config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> StateDict:
    """A whole assembled model; every tensor differs from every other, the head is the embedding itself."""
    generator = torch.Generator().manual_seed(seed)
    d, f, e = config.d_model, config.d_ff, config.n_experts

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = {
        "shared.token_embedding.weight": random(config.vocab_size, d),
        "shared.pos_encoding.pe": sinusoidal_positions(config.max_seq_len, d).unsqueeze(0).to(dtype),
    }
    tensors["shared.lm_head.weight"] = tensors["shared.token_embedding.weight"]
    norms = ["shared.output_norm"]
    for layer in range(config.n_layers):
        block, moe = f"shared.transformer_blocks.{layer}", f"moe_layers.{layer}"
        norms += [f"{block}.attn_norm", f"{block}.ffn_norm", f"{moe}.ffn_norm"]
        tensors[f"{block}.attention.qkv_proj.weight"] = random(3 * d, d)
        tensors[f"{block}.attention.out_proj.weight"] = random(d, d)
        tensors[f"{moe}.router.gate.weight"] = random(e, d)
        tensors[f"{moe}.router.noise_weight.weight"] = random(e, d)
        for expert in range(e):
            prefix = f"{moe}.experts.{expert}"
            norms.append(f"{prefix}.norm")
            tensors[f"{prefix}.fc1.weight"], tensors[f"{prefix}.fc1.bias"] = random(f, d), random(f)
            tensors[f"{prefix}.fc2.weight"], tensors[f"{prefix}.fc2.bias"] = random(d, f), random(d)
    for norm in norms:
        tensors[f"{norm}.weight"], tensors[f"{norm}.bias"] = random(d), random(d)
    return tensors


def source_config(config: ModelConfig, **sections: Any) -> dict[str, Any]:
    """A whole configuration; of the other sections, those that are given."""
    sizes = config.to_dict()
    del sizes["family"], sizes["tie_embedding"]
    return {"model": sizes | {"dropout": 0.1, "expert_dropout": 0.1}, **sections}


def write_config(folder: Path, config: ModelConfig, **sections: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(source_config(config, **sections)))
    return path


def write_assembled(folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
    path = folder / "assembled_model.pt"
    torch.save({"model_state_dict": dict(tensors), "config": source_config(config)}, path)
    return path


def write_safetensors(folder: Path, tensors: Mapping[str, Tensor], dropped: str) -> Path:
    """The bare state dict, of which one of the two tied tensors had to be left out."""
    path = folder / "assembled_model.safetensors"
    kept = {name: tensor for name, tensor in tensors.items() if name != dropped}
    safetensors.torch.save_file(kept, path)
    return path


def write_parts(folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
    shared = {
        name.removeprefix("shared."): tensor for name, tensor in tensors.items() if name.startswith("shared.")
    }
    torch.save(shared, folder / "shared_components.pt")
    for expert in range(config.n_experts):
        torch.save(expert_part(config, tensors, expert), folder / f"expert_{expert}.pt")
    write_config(folder, config)
    return folder


def expert_part(config: ModelConfig, tensors: Mapping[str, Tensor], expert: int) -> dict[str, Any]:
    names = family_of(config).expert_shapes(config)
    return {
        "expert_idx": expert,
        "experts_state_dict": {
            f"{layer}.{name}": tensors[f"moe_layers.{layer}.experts.{expert}.{name}"]
            for layer in range(config.n_layers)
            for name in names
        },
        "config": {"d_model": config.d_model, "d_ff": config.d_ff, "n_layers": config.n_layers},
    }


def expected_shared(config: ModelConfig, tensors: Mapping[str, Tensor]) -> StateDict:
    """What an import must make of the shared part, bit for bit; written out, not taken from the importer."""
    ours = {"embedding.weight": tensors["shared.token_embedding.weight"]}
    for part in ("weight", "bias"):
        ours[f"output_norm.{part}"] = tensors[f"shared.output_norm.{part}"]
    for layer in range(config.n_layers):
        block, moe = f"shared.transformer_blocks.{layer}", f"moe_layers.{layer}"
        ours[f"blocks.{layer}.qkv.weight"] = tensors[f"{block}.attention.qkv_proj.weight"]
        ours[f"blocks.{layer}.out.weight"] = tensors[f"{block}.attention.out_proj.weight"]
        ours[f"blocks.{layer}.router.weight"] = tensors[f"{moe}.router.gate.weight"]
        for part in ("weight", "bias"):
            ours[f"blocks.{layer}.attn_norm.{part}"] = tensors[f"{block}.attn_norm.{part}"]
            ours[f"blocks.{layer}.ffn_norm.{part}"] = tensors[f"{moe}.ffn_norm.{part}"]
    return ours


def expected_expert(tensors: Mapping[str, Tensor], layer: int, expert: int) -> StateDict:
    prefix = f"moe_layers.{layer}.experts.{expert}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit, dtype included."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def write_checkpoint(
    dest: Path,
    config: ModelConfig = TINY,
    *,
    dtype: torch.dtype = torch.float32,
    generation: GenerationDefaults | None = None,
    tokenizer: bytes | None = None,
    settings: TokenizerSettings = UNSAID,
    seed: int = 0,
    force: bool = False,
) -> Path:
    """A whole checkpoint of ours with random weights."""
    family = family_of(config)
    with CheckpointWriter(dest, config, dtype, generation or GenerationDefaults(), force=force) as writer:
        writer.write_shared(family.init_shared(config, module_generator(seed, "shared")))
        for layer in range(config.n_layers):
            for expert in range(config.n_experts):
                writer.write_expert(layer, expert, random_expert(config, layer, expert, seed))
        if tokenizer is not None:
            writer.write_tokenizer(tokenizer)
        writer.write_tokenizer_settings(settings)
    return dest


def random_expert(config: ModelConfig, layer: int, expert: int, seed: int = 0) -> StateDict:
    return family_of(config).init_expert(config, module_generator(seed, "expert", layer, expert))


def read_manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_bytes())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to see that nothing changed."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
