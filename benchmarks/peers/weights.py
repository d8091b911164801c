"""Makes llama.cpp's files of the tensors of a Hugging Face folder, one a type.

Runs in the peers' environment: `python -m benchmarks.peers.weights OPTIONS`, JSON with the keys `model`,
`folder` and `llama_types`. Sources: the layout that llama.cpp's own converter gives these two families.

Shapes: E experts, O outputs, I inputs.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file
from torch import Tensor

LLAMA_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
# By model_type: llama.cpp's name; whether it turns neighbours, not halves, of a head; where experts are.
ARCHITECTURES = {"mixtral": "llama", "qwen3_moe": "qwen3moe"}
TURNS_NEIGHBOURS = {"mixtral"}
EXPERTS = {
    "mixtral": ("block_sparse_moe", {"gate": "w1", "down": "w2", "up": "w3"}),
    "qwen3_moe": ("mlp", {name: f"{name}_proj" for name in ("gate", "down", "up")}),
}


class Model:
    """A folder's config and tensors."""

    def __init__(self, folder: Path) -> None:
        self.config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tensors: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self.tensors |= load_file(path)
        self.kind: str = self.config["model_type"]
        self.num_experts: int = self.config.get("num_experts", self.config.get("num_local_experts"))

    def array(self, name: str) -> np.ndarray:
        found: np.ndarray = self.tensors[f"{name}.weight"].float().numpy()
        return found


def write_gguf(path: Path, model: Model, llama_type: str) -> None:
    """A file without a tokenizer; norms and routers in float32, as llama.cpp's own converter has them."""
    writer = gguf.GGUFWriter(str(path), ARCHITECTURES[model.kind])
    _write_sizes(writer, model)
    for name, array in gguf_tensors(model):
        is_small = array.ndim == 1 or "ffn_gate_inp" in name
        kind = LLAMA_TYPES["f32" if is_small else llama_type]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: Any, model: Model) -> None:
    config = model.config
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_expert_count(model.num_experts)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def gguf_tensors(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """There is no `output.weight` where the head is tied: llama.cpp then takes the embedding."""
    config, of = model.config, model.array
    yield "token_embd.weight", of("model.embed_tokens")
    yield "output_norm.weight", of("model.norm")
    if not config["tie_word_embeddings"]:
        yield "output.weight", of("lm_head")
    place, parts = EXPERTS[model.kind]
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for layer in range(config["num_hidden_layers"]):
        source, target = f"model.layers.{layer}", f"blk.{layer}"
        yield f"{target}.attn_norm.weight", of(f"{source}.input_layernorm")
        yield f"{target}.ffn_norm.weight", of(f"{source}.post_attention_layernorm")
        for name, num_heads in heads.items():
            rows = of(f"{source}.self_attn.{name}_proj")
            is_paired = model.kind in TURNS_NEIGHBOURS
            yield f"{target}.attn_{name}.weight", paired(rows, num_heads) if is_paired else rows
            if f"{source}.self_attn.{name}_norm.weight" in model.tensors:
                yield f"{target}.attn_{name}_norm.weight", of(f"{source}.self_attn.{name}_norm")
        yield f"{target}.attn_v.weight", of(f"{source}.self_attn.v_proj")
        yield f"{target}.attn_output.weight", of(f"{source}.self_attn.o_proj")
        yield f"{target}.ffn_gate_inp.weight", of(f"{source}.{place}.gate")
        for name, part in parts.items():
            experts = [of(f"{source}.{place}.experts.{e}.{part}") for e in range(model.num_experts)]
            yield f"{target}.ffn_{name}_exps.weight", np.stack(experts)


def paired(weight_OI: np.ndarray, num_heads: int) -> np.ndarray:
    """Rotary positions turn the halves of a head in transformers, neighbours in llama.cpp."""
    num_out, num_in = weight_OI.shape
    halves = weight_OI.reshape(num_heads, 2, num_out // num_heads // 2, num_in)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(num_out, num_in))


def main() -> None:
    options = json.loads(sys.argv[1])
    model, folder = Model(Path(options["model"])), Path(options["folder"])
    for llama_type in options["llama_types"]:
        write_gguf(folder / f"{llama_type}.gguf", model, llama_type)
    print(json.dumps({"num_params": sum(array.size for _, array in gguf_tensors(model))}))


if __name__ == "__main__":
    main()
