"""A family as its tests see it: a small random model of it, written by transformers.

Sizes are such that no two explain each other. Norm weights are not 1, biases and corrections not 0, and
routers are decided. Shapes: B batch, S sequence, V vocabulary, T tokens, L layers, K experts per token.
"""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

Json = dict[str, Any]

# What all cases have, unless they say otherwise.
COMMON: Json = {
    "vocab_size": 311,
    "hidden_size": 40,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 160,
    "rms_norm_eps": 3e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
}


def nothing(_data: Json) -> None:
    """An old config.json that has no keys of its own."""


@dataclass(frozen=True)
class Case:
    """`classes` is what transformers' classes are called before `Config` and `ForCausalLM`; `sizes` are keys
    of its config, beside those that all cases have.

    `variants`: a name -> keys that differ. Those of `served` are not only computed once but also generate
    tokens, with everything around them; "" is the model without changes. `age` makes an old config.json of a
    new one, beyond what is the same for all. `adjust` changes weights that are to be of a certain kind.
    """

    name: str
    classes: str
    sizes: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    served: tuple[str, ...] = ("",)
    age: Callable[[Json], None] = nothing
    adjust: Callable[[str, Tensor], None] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def model_type(self) -> str:
        """What its config.json says."""
        found: str = getattr(transformers, f"{self.classes}Config").model_type
        return found

    @property
    def vocab_size(self) -> int:
        size: int = (COMMON | dict(self.sizes))["vocab_size"]
        return size

    def make_model(self, variant: str = "", seed: int = 0) -> Any:
        """In float32, with the attention and the experts that are written out plainly."""
        changes = self.variants[variant] if variant else {}
        # A copy: the library writes its defaults into what it is given.
        sizes = deepcopy(COMMON | dict(self.sizes) | dict(changes))
        config = getattr(transformers, f"{self.classes}Config")(**sizes)
        config._attn_implementation = "eager"
        model = getattr(transformers, f"{self.classes}ForCausalLM")(config).float().eval()
        model.set_experts_implementation("eager")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(_random(name, tensor, generator))
                if self.adjust is not None:
                    self.adjust(name, tensor)
        return model

    def write(self, model: Any, folder: Path, *, old: bool = False, max_shard_size: str = "40KB") -> Path:
        """`old`: config.json as the library wrote it before version 5."""
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if old:
            path = folder / "config.json"
            data = json.loads(path.read_text(encoding="utf-8"))
            _age(data)
            self.age(data)
            path.write_text(json.dumps(data), encoding="utf-8")
        return folder


def _random(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.3 * noise
    if tensor.dim() == 1 or name.endswith("bias"):
        return 0.3 * noise
    if "embed_tokens" in name:
        return noise
    is_router = name.endswith(("gate.weight", "router.weight", "router.layer.weight"))
    return noise * ((4.0 if is_router else 1.5) / sqrt(tensor.shape[-1]))


def _age(data: Json) -> None:
    """What changed with version 5 for all families."""
    rope = data.pop("rope_parameters")
    data["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        data["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type")
    data["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    data["torch_dtype"] = data.pop("dtype")
    data["transformers_version"] = "4.40.0"


@torch.no_grad()
def logits_of(model: Any, ids_BS: Tensor, mask_BS: Tensor | None = None) -> Tensor:
    """Without a cache; where the mask is 0 is padding."""
    found: Tensor = model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
    return found


@torch.no_grad()
def balance_of(model: Any, ids_BS: Tensor, mask_BS: Tensor | None = None) -> Tensor | None:
    """What transformers calls `aux_loss`; None of a model that has none."""
    found = model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False, output_router_logits=True)
    return getattr(found, "aux_loss", None)


@dataclass(frozen=True)
class Said:
    """What transformers says of one sequence: `logits_SV`, and the experts of each token in each layer that
    has some, `routed_SLK`, in no order."""

    logits_SV: Tensor
    routed_SLK: Tensor


def say(model: Any, ids: list[int]) -> Said:
    """All routers of the library return their logits, the weights and the chosen experts."""
    routed: list[Tensor] = []
    routers = [module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")]
    assert routers, "a model whose routers are not found"
    handles = [
        router.register_forward_hook(lambda _module, _inputs, found: routed.append(found[2]))
        for router in routers
    ]
    try:
        logits_BSV = logits_of(model, torch.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    return Said(logits_BSV[0], torch.stack([each.reshape(len(ids), -1) for each in routed], dim=1))
