"""Writes one random Mixtral for all peers: a folder for transformers, a file a type for llama.cpp.

Runs in the peers' environment: `python -m benchmarks.peers.weights OPTIONS`, JSON with the keys `folder`,
`size` and `llama_types`. The weights are rounded to bfloat16 first, so that every format up to that
precision holds the same numbers.

Shapes: D d_model, F d_ff, E experts, V vocabulary, O outputs, I inputs.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers.jobs import MixtralSize

EMBEDDING_STD = 0.02
LLAMA_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}


def random_weights(size: MixtralSize, seed: int = 0) -> dict[str, Tensor]:
    """By the names of Mixtral's published files, in bfloat16.

    Matrices keep the variance of their inputs, so that what a layer adds is more than rounding.
    """
    generator = torch.Generator().manual_seed(seed)

    def matrix(num_out: int, num_in: int, std: float | None = None) -> Tensor:
        scale = num_in**-0.5 if std is None else std
        return (torch.randn(num_out, num_in, generator=generator) * scale).bfloat16()

    ones_D = torch.ones(size.d_model, dtype=torch.bfloat16)
    tensors = {
        "model.embed_tokens.weight": matrix(size.vocab_size, size.d_model, EMBEDDING_STD),
        "model.norm.weight": ones_D,
    }
    for layer in range(size.n_layers):
        prefix = f"model.layers.{layer}"
        for name in ("q", "k", "v", "o"):
            tensors[f"{prefix}.self_attn.{name}_proj.weight"] = matrix(size.d_model, size.d_model)
        tensors[f"{prefix}.input_layernorm.weight"] = ones_D.clone()
        tensors[f"{prefix}.post_attention_layernorm.weight"] = ones_D.clone()
        tensors[f"{prefix}.block_sparse_moe.gate.weight"] = matrix(size.n_experts, size.d_model)
        for expert in range(size.n_experts):
            for name in ("w1", "w3", "w2"):
                shape = (size.d_model, size.d_ff) if name == "w2" else (size.d_ff, size.d_model)
                tensors[f"{prefix}.block_sparse_moe.experts.{expert}.{name}.weight"] = matrix(*shape)
    return tensors


def write_transformers(folder: Path, size: MixtralSize, tensors: dict[str, Tensor]) -> None:
    """A folder that `from_pretrained` reads."""
    folder.mkdir()
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": size.d_model,
        "intermediate_size": size.d_ff,
        "num_hidden_layers": size.n_layers,
        "num_attention_heads": size.n_heads,
        "num_key_value_heads": size.n_heads,
        "num_local_experts": size.n_experts,
        "num_experts_per_tok": size.top_k,
        "vocab_size": size.vocab_size,
        "max_position_embeddings": size.max_seq_len,
        "rope_parameters": {"rope_type": "default", "rope_theta": size.rope_theta},
        "rms_norm_eps": size.norm_eps,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def write_gguf(path: Path, size: MixtralSize, tensors: dict[str, Tensor], llama_type: str) -> None:
    """A file without a tokenizer; norms and routers in float32, as llama.cpp's own converter has them."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(size.max_seq_len)
    writer.add_embedding_length(size.d_model)
    writer.add_block_count(size.n_layers)
    writer.add_feed_forward_length(size.d_ff)
    writer.add_head_count(size.n_heads)
    writer.add_head_count_kv(size.n_heads)
    writer.add_expert_count(size.n_experts)
    writer.add_expert_used_count(size.top_k)
    writer.add_rope_dimension_count(size.d_model // size.n_heads)
    writer.add_rope_freq_base(size.rope_theta)
    writer.add_layer_norm_rms_eps(size.norm_eps)
    writer.add_vocab_size(size.vocab_size)
    writer.add_tokenizer_model("none")
    for name, array in _gguf_tensors(size, tensors):
        is_small = array.ndim == 1 or "ffn_gate_inp" in name
        kind = LLAMA_TYPES["f32" if is_small else llama_type]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_tensors(size: MixtralSize, tensors: dict[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    """There is no `output.weight`: llama.cpp then takes the embedding."""

    def of(name: str) -> np.ndarray:
        array: np.ndarray = tensors[f"{name}.weight"].float().numpy()
        return array

    yield "token_embd.weight", of("model.embed_tokens")
    yield "output_norm.weight", of("model.norm")
    for layer in range(size.n_layers):
        source, target = f"model.layers.{layer}", f"blk.{layer}"
        yield f"{target}.attn_norm.weight", of(f"{source}.input_layernorm")
        yield f"{target}.ffn_norm.weight", of(f"{source}.post_attention_layernorm")
        for name in ("q", "k"):
            yield (
                f"{target}.attn_{name}.weight",
                _paired(of(f"{source}.self_attn.{name}_proj"), size.n_heads),
            )
        yield f"{target}.attn_v.weight", of(f"{source}.self_attn.v_proj")
        yield f"{target}.attn_output.weight", of(f"{source}.self_attn.o_proj")
        yield f"{target}.ffn_gate_inp.weight", of(f"{source}.block_sparse_moe.gate")
        for name, part in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            parts = [f"{source}.block_sparse_moe.experts.{e}.{part}" for e in range(size.n_experts)]
            yield f"{target}.ffn_{name}_exps.weight", np.stack([of(p) for p in parts])


def _paired(weight_OI: np.ndarray, n_heads: int) -> np.ndarray:
    """Rotary positions turn the halves of a head in transformers, neighbours in llama.cpp."""
    num_out, num_in = weight_OI.shape
    halves = weight_OI.reshape(n_heads, 2, num_out // n_heads // 2, num_in)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(num_out, num_in))


def main() -> None:
    options = json.loads(sys.argv[1])
    folder, size = Path(options["folder"]), MixtralSize(**options["size"])
    tensors = random_weights(size)
    write_transformers(folder / "transformers", size, tensors)
    for llama_type in options["llama_types"]:
        write_gguf(folder / f"{llama_type}.gguf", size, tensors, llama_type)
    print(json.dumps({"num_params": sum(tensor.numel() for tensor in tensors.values())}))


if __name__ == "__main__":
    main()
