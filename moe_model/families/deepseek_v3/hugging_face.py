"""A DeepSeek-V3 as its authors publish it: `config.json` of model_type deepseek_v3 (Moonlight's too) or
kimi_k2, and the names of its tensors."""

from dataclasses import asdict
from typing import Any, ClassVar

from moe_model.config import ModelConfig
from moe_model.families.deepseek import (
    KEYS,
    DeepseekConfig,
    dense_and_shared,
    read_latent,
    read_sigmoid_choice,
    write_latent,
)
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.published import LATENT_ATTENTION, PublishedFolder


class DeepseekV3Folder(PublishedFolder):
    """Reads the Hugging Face folder of a DeepSeek-V3."""

    block = LATENT_ATTENTION
    keys: ClassVar = {**KEYS, "is_interleaved": "rope_interleave"}

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        keys.expect_code("configuration_deepseek", "modeling_deepseek")
        keys.expect("hidden_act", "silu")
        keys.expect("scoring_func", "sigmoid")
        keys.expect("topk_method", "noaux_tc")
        keys.expect("moe_layer_freq", 1)
        # Training's, and layers beyond the last, which predict further tokens.
        keys.ignore("aux_loss_alpha", "seq_aux", "ep_size", "pretraining_tp", "num_nextn_predict_layers")
        n_heads = keys.count("num_attention_heads", 128)
        max_seq_len = keys.count("max_position_embeddings", 4096)
        rope = keys.rope(1e4, max_seq_len)
        latent = read_latent(keys, n_heads, rope)
        d_ff = keys.count("moe_intermediate_size", 2048)
        return ModelConfig(
            family="deepseek_v3",
            d_model=keys.count("hidden_size", 7168),
            n_heads=n_heads,
            head_dim=latent.head_dim,
            n_layers=keys.count("num_hidden_layers", 61),
            d_ff=d_ff,
            n_experts=keys.count("n_routed_experts", 256),
            top_k=keys.count("num_experts_per_tok", 8),
            vocab_size=keys.count("vocab_size", 129280),
            max_seq_len=max_seq_len,
            tie_embedding=keys.flag("tie_word_embeddings", default=False),
            dense_layers=tuple(range(keys.count("first_k_dense_replace", 3, least=0))),
            own=DeepseekConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-6),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                latent=latent,
                choice=read_sigmoid_choice(keys, 8, 4, 2.5),
                dense_width=keys.count("intermediate_size", 18432),
                shared_width=d_ff * keys.count("n_shared_experts", 1, least=0),
                is_interleaved=keys.flag("rope_interleave", default=not keys.is_null("rope_interleave")),
            ),
        )

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        own = config.own
        assert isinstance(own, DeepseekConfig)
        found = write_latent(super().write_config(config), own)
        return found | dense_and_shared(config, own.shared_width) | asdict(own.choice)
