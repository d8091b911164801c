"""A GLM-4.5 as its authors publish it: `config.json` of model_type glm4_moe, and the names of its tensors."""

from dataclasses import asdict
from typing import Any, ClassVar

from moe_model.config import ModelConfig
from moe_model.families.deepseek import KEYS, dense_and_shared, read_sigmoid_choice
from moe_model.families.glm4_moe.config import Glm4MoeConfig
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.published import PublishedFolder


class Glm4MoeFolder(PublishedFolder):
    """Reads the Hugging Face folder of a GLM-4.5."""

    keys: ClassVar = {**KEYS, "has_qkv_biases": "attention_bias", "has_head_norms": "use_qk_norm"}

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        """Half of each head turns where the config does not say."""
        keys.expect("hidden_act", "silu")
        # Layers beyond the last, which predict further tokens.
        keys.ignore("num_nextn_predict_layers")
        d_model, n_heads = keys.count("hidden_size", 4096), keys.count("num_attention_heads", 96)
        head_dim = keys.count("head_dim", 0) or d_model // n_heads
        max_seq_len = keys.count("max_position_embeddings", 131072)
        rope = keys.rope(1e4, max_seq_len, partial=0.5)
        d_ff = keys.count("moe_intermediate_size", 1408)
        return ModelConfig(
            family="glm4_moe",
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=keys.count("num_key_value_heads", 8),
            head_dim=head_dim,
            n_layers=keys.count("num_hidden_layers", 46),
            d_ff=d_ff,
            n_experts=keys.count("n_routed_experts", 128),
            top_k=keys.count("num_experts_per_tok", 8),
            vocab_size=keys.count("vocab_size", 151552),
            max_seq_len=max_seq_len,
            tie_embedding=keys.flag("tie_word_embeddings", default=False),
            dense_layers=tuple(range(keys.count("first_k_dense_replace", 1, least=0))),
            own=Glm4MoeConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-5),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                turning_width=int(head_dim * rope.partial),
                has_qkv_biases=keys.flag("attention_bias", default=False),
                has_head_norms=keys.flag("use_qk_norm", default=False),
                choice=read_sigmoid_choice(keys, 1, 1, 1.0),
                dense_width=keys.count("intermediate_size", 10944),
                shared_width=d_ff * keys.count("n_shared_experts", 1, least=0),
            ),
        )

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        own, found = config.own, super().write_config(config)
        assert isinstance(own, Glm4MoeConfig)
        found["rope_parameters"]["partial_rotary_factor"] = own.turning_width / config.head_dim
        return found | dense_and_shared(config, own.shared_width) | asdict(own.choice)
