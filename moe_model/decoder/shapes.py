"""Names and shapes of a decoder's tensors, as its spec says. Names are ours, the same for all families.

Shapes: D d_model, F d_ff, E experts, V vocabulary.
"""

from moe_model.config import ModelConfig
from moe_model.decoder.spec import SHARED_NETWORK, DecoderSpec, GroupedAttention, LatentAttention
from moe_model.families.base import Shapes
from moe_model.families.weights import prefixed
from moe_model.layers.specs import ExpertSpec


def shared_shapes(config: ModelConfig, spec: DecoderSpec) -> Shapes:
    """Of the shared part."""
    d = config.d_model
    shapes: Shapes = {"embedding.weight": (config.vocab_size, d), "output_norm.weight": (d,)}
    if not config.tie_embedding:
        shapes["head.weight"] = (config.vocab_size, d)
    attention = attention_shapes(config, spec)
    for layer in range(config.n_layers):
        ffn = dense_shapes(config, spec) if layer in config.dense_layers else moe_shapes(config, spec)
        norms: Shapes = {"attn_norm.weight": (d,), "ffn_norm.weight": (d,)}
        shapes |= prefixed(f"blocks.{layer}", norms | attention | ffn)
    return shapes


def attention_shapes(config: ModelConfig, spec: DecoderSpec) -> Shapes:
    """Of one layer."""
    if isinstance(spec.attention, LatentAttention):
        return _latent_shapes(config, spec.attention)
    return _grouped_shapes(config, spec.attention)


def _grouped_shapes(config: ModelConfig, attention: GroupedAttention) -> Shapes:
    d, head = config.d_model, config.head_dim
    q, kv = config.n_heads * head, config.n_kv_heads * head
    shapes: Shapes = {"q.weight": (q, d), "k.weight": (kv, d), "v.weight": (kv, d), "out.weight": (d, q)}
    if attention.has_qkv_biases:
        shapes |= {"q.bias": (q,), "k.bias": (kv,), "v.bias": (kv,)}
    if attention.has_out_bias:
        shapes["out.bias"] = (d,)
    if attention.query_key_norm != "none":
        is_whole = attention.query_key_norm == "whole"
        shapes |= {"q_norm.weight": (q if is_whole else head,), "k_norm.weight": (kv if is_whole else head,)}
    if attention.has_sinks:
        shapes["sinks"] = (config.n_heads,)
    return shapes


def _latent_shapes(config: ModelConfig, attention: LatentAttention) -> Shapes:
    d, heads, turning = config.d_model, config.n_heads, attention.rotary.dim
    q = heads * (attention.plain_width + turning)
    kept = attention.latent_rank + turning
    shapes: Shapes = {
        "kv_down.weight": (kept, d),
        "kv_norm.weight": (attention.latent_rank,),
        "kv_up.weight": (heads * (attention.plain_width + attention.value_width), attention.latent_rank),
        "out.weight": (d, heads * attention.value_width),
    }
    if attention.query_rank is None:
        shapes["q.weight"] = (q, d)
    else:
        rank = attention.query_rank
        shapes |= {"q_down.weight": (rank, d), "q_norm.weight": (rank,), "q_up.weight": (q, rank)}
    if attention.has_biases:
        shapes |= {"kv_down.bias": (kept,), "out.bias": (d,)}
        if attention.query_rank is not None:
            shapes["q_down.bias"] = (attention.query_rank,)
    return shapes


def moe_shapes(config: ModelConfig, spec: DecoderSpec) -> Shapes:
    """Router and shared expert of one layer."""
    shapes: Shapes = {"router.weight": (config.n_experts, config.d_model)}
    if spec.has_router_bias:
        shapes["router.bias"] = (config.n_experts,)
    if spec.has_correction:
        shapes["router.correction"] = (config.n_experts,)
    if spec.shared_width:
        shapes |= prefixed("shared", network_shapes(config.d_model, spec.shared_width, SHARED_NETWORK))
        if spec.is_shared_gated:
            shapes["shared.router.weight"] = (1, config.d_model)
    return shapes


def dense_shapes(config: ModelConfig, spec: DecoderSpec) -> Shapes:
    """The feed-forward network of a dense layer."""
    return prefixed("dense", network_shapes(config.d_model, spec.dense_width, SHARED_NETWORK))


def network_shapes(width: int, hidden: int, spec: ExpertSpec) -> Shapes:
    """A feed-forward network: an expert's, or one that all rows go through."""
    shapes: Shapes = {"up.weight": (hidden, width), "down.weight": (width, hidden)}
    if spec.is_gated:
        shapes["gate.weight"] = (hidden, width)
    if spec.has_biases:
        biases = {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
        shapes |= biases
    return shapes
