"""A small random Mixtral, written by transformers, and what transformers itself computes with it.

Sizes are such that no two explain each other: 7 experts, 6 query heads over 2 key/value heads, a head size
that is not the width over the heads. Norm weights are not 1 and routers are decided.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 311,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "num_local_experts": 7,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 160,
    "rms_norm_eps": 3e-5,
    "rope_theta": 5e4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_model(seed: int = 0, **changes: Any) -> Any:
    """In float32, with the attention and the experts that are written out plainly."""
    sizes = SIZES | changes
    theta = sizes.pop("rope_theta")
    config = transformers.MixtralConfig(
        **sizes, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.MixtralForCausalLM(config).float().eval()
    model.set_experts_implementation("eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            is_norm = tensor.dim() == 1
            tensor.copy_(1 + 0.3 * noise if is_norm else noise * _scale(name, tensor))
    return model


def _scale(name: str, tensor: Tensor) -> float:
    return 1.0 if "embed" in name else 1.5 / float(tensor.shape[-1]) ** 0.5


def write_folder(
    model: Any, folder: Path, *, max_shard_size: str = "40KB", old_spelling: bool = False
) -> Path:
    """`old_spelling`: config.json as the library wrote it before version 5."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if old_spelling:
        path = folder / "config.json"
        data = json.loads(path.read_text())
        rope = data.pop("rope_parameters")
        data |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": data.pop("dtype")}
        data |= {"transformers_version": "4.36.0"}
        path.write_text(json.dumps(data))
    return folder


@torch.no_grad()
def logits_of(model: Any, ids_BS: Tensor) -> Tensor:
    found: Tensor = model(input_ids=ids_BS, use_cache=False).logits
    return found


@torch.no_grad()
def greedy(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    """One token at a time, without a cache."""
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(logits_of(model, torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]
