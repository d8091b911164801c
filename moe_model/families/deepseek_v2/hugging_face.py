"""A DeepSeek-V2 as its authors publish it: `config.json` of model_type deepseek_v2, and names of tensors."""

from typing import Any, ClassVar

from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families.deepseek import (
    KEYS,
    ChoiceConfig,
    DeepseekConfig,
    dense_and_shared,
    read_latent,
    write_latent,
)
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.published import LATENT_ATTENTION, PublishedFolder


class DeepseekV2Folder(PublishedFolder):
    """Reads the Hugging Face folder of a DeepSeek-V2."""

    block = LATENT_ATTENTION
    keys: ClassVar = KEYS

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        keys.expect_code("configuration_deepseek", "modeling_deepseek")
        keys.expect("hidden_act", "silu")
        keys.expect("scoring_func", "softmax")
        keys.expect("moe_layer_freq", 1)
        keys.expect("mlp_bias", False)
        # Training's.
        keys.ignore("aux_loss_alpha", "seq_aux", "ep_size", "pretraining_tp")
        if not keys.has("num_experts_per_tok"):
            raise ConfigError("num_experts_per_tok: is missing")
        n_heads = keys.count("num_attention_heads", 32)
        max_seq_len = keys.count("max_position_embeddings", 2048)
        rope = keys.rope(1e4, max_seq_len)
        latent = read_latent(keys, n_heads, rope)
        d_ff = keys.count("moe_intermediate_size", 1407)
        return ModelConfig(
            family="deepseek_v2",
            d_model=keys.count("hidden_size", 4096),
            n_heads=n_heads,
            head_dim=latent.head_dim,
            n_layers=keys.count("num_hidden_layers", 32),
            d_ff=d_ff,
            n_experts=keys.count("n_routed_experts", 64),
            top_k=keys.count("num_experts_per_tok", 0),
            vocab_size=keys.count("vocab_size", 102400),
            max_seq_len=max_seq_len,
            tie_embedding=keys.flag("tie_word_embeddings", default=False),
            dense_layers=tuple(range(keys.count("first_k_dense_replace", 0, least=0))),
            own=DeepseekConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-6),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                latent=latent,
                choice=_read_choice(keys),
                dense_width=keys.count("intermediate_size", 11008),
                shared_width=d_ff * keys.count("n_shared_experts", 2, least=0),
            ),
        )

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        own = config.own
        assert isinstance(own, DeepseekConfig)
        choice = own.choice
        return {
            **write_latent(super().write_config(config), own),
            **dense_and_shared(config, own.shared_width),
            "topk_method": "greedy" if choice.n_group == 1 else "group_limited_greedy",
            "n_group": choice.n_group,
            "topk_group": choice.topk_group,
            "routed_scaling_factor": choice.routed_scaling_factor,
        }


def _read_choice(keys: ConfigKeys) -> ChoiceConfig:
    """Groups count for one of the methods only. Weights are divided by their sum in no model."""
    keys.expect("norm_topk_prob", False)
    scale = keys.number("routed_scaling_factor", 1.0)
    if keys.one_of("topk_method", "greedy", "group_limited_greedy") == "greedy":
        keys.ignore("n_group", "topk_group")
        return ChoiceConfig(routed_scaling_factor=scale)
    for name in ("n_group", "topk_group"):
        if not keys.has(name):
            raise ConfigError(f"{name}: is missing")
    return ChoiceConfig(keys.count("n_group", 1), keys.count("topk_group", 1), False, scale)
