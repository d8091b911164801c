"""A small Mixtral folder, written without transformers: for what must be refused, and read otherwise."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG: Mapping[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "vocab_size": 20,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "hidden_act": "silu",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "dtype": "float32",
    "transformers_version": "5.24.0",
}


def make_tensors(seed: int = 0) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (20, 8),
        "lm_head.weight": (20, 8),
        "model.norm.weight": (8,),
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (8,),
            f"{prefix}.post_attention_layernorm.weight": (8,),
            f"{prefix}.self_attn.q_proj.weight": (12, 8),
            f"{prefix}.self_attn.k_proj.weight": (4, 8),
            f"{prefix}.self_attn.v_proj.weight": (4, 8),
            f"{prefix}.self_attn.o_proj.weight": (8, 12),
            f"{prefix}.block_sparse_moe.gate.weight": (3, 8),
        }
        for expert in range(3):
            for name, shape in {"w1": (6, 8), "w2": (8, 6), "w3": (6, 8)}.items():
                shapes[f"{prefix}.block_sparse_moe.experts.{expert}.{name}.weight"] = shape
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


def write_folder(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] = CONFIG, *, shards: int = 1
) -> Path:
    """With more than one shard, neighbours by name are in different files."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    files = [f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
    weight_map = {name: files[index % shards] for index, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def cached(folder: Path, hub: Path, name: str, revision: str = "main") -> Path:
    """A folder as a snapshot in the cache of the hub: links to blobs. Of large files a blob's name is its
    SHA-256, of the others the SHA-1 that git gives it."""
    model = hub / f"models--{name.replace('/', '--')}"
    blobs = model / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    sums: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        is_large = path.suffix == ".safetensors"
        found = hashlib.sha256(data) if is_large else hashlib.sha1(b"blob %d\0" % len(data) + data)
        sums[path.name] = found.hexdigest()
        (blobs / found.hexdigest()).write_bytes(data)
    commit = hashlib.sha1(json.dumps(sums).encode()).hexdigest()
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    for file, blob in sums.items():
        (snapshot / file).symlink_to(f"../../blobs/{blob}")
    ref = model / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    return snapshot
