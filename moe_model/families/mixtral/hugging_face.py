"""A Mixtral as its authors publish it: `config.json` of model_type mixtral, and the names of its tensors."""

from moe_model.config import ModelConfig
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.mixtral.config import MixtralConfig

# Ours, then theirs, of one layer.
_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "q.weight": "self_attn.q_proj.weight",
    "k.weight": "self_attn.k_proj.weight",
    "v.weight": "self_attn.v_proj.weight",
    "out.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "router.weight": "block_sparse_moe.gate.weight",
}
_EXPERT = {"gate.weight": "w1.weight", "up.weight": "w3.weight", "down.weight": "w2.weight"}


class MixtralFolder:
    """Reads the Hugging Face folder of a Mixtral."""

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        """Raises ConfigError naming the key."""
        keys.expect("hidden_act", "silu")
        keys.expect("sliding_window", None)
        return ModelConfig(
            family="mixtral",
            d_model=keys.count("hidden_size", 4096),
            n_heads=keys.count("num_attention_heads", 32),
            # Null stands for one for each query head, an absent key for the published models' own.
            n_kv_heads=keys.count("num_key_value_heads", 0 if keys.is_null("num_key_value_heads") else 8),
            head_dim=keys.count("head_dim", 0),
            n_layers=keys.count("num_hidden_layers", 32),
            d_ff=keys.count("intermediate_size", 14336),
            n_experts=keys.count("num_local_experts", 8),
            top_k=keys.count("num_experts_per_tok", 2),
            vocab_size=keys.count("vocab_size", 32000),
            max_seq_len=keys.count("max_position_embeddings", 131072),
            tie_embedding=keys.flag("tie_word_embeddings", default=False),
            own=MixtralConfig(keys.number("rms_norm_eps", 1e-5), keys.rope_theta(1e6)),
        )

    def shared_names(self, config: ModelConfig) -> dict[str, str]:
        """Our name of every tensor of the shared part -> theirs."""
        names = {"embedding.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
        if not config.tie_embedding:
            names["head.weight"] = "lm_head.weight"
        for layer in range(config.n_layers):
            names |= {f"blocks.{layer}.{o}": f"model.layers.{layer}.{t}" for o, t in _BLOCK.items()}
        return names

    def expert_names(self, layer: int, expert: int) -> dict[str, str]:
        """Our name of every tensor of one expert -> theirs."""
        prefix = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
        return {ours: f"{prefix}.{theirs}" for ours, theirs in _EXPERT.items()}
