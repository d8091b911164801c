"""A Mixtral as its authors publish it: `config.json` of model_type mixtral, and the names of its tensors."""

from typing import ClassVar

from moe_model.config import ModelConfig
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.mixtral.config import MixtralConfig
from moe_model.families.published import NUMBERED_EXPERT, PublishedFolder


class MixtralFolder(PublishedFolder):
    """Reads the Hugging Face folder of a Mixtral."""

    block: ClassVar = {"router.weight": "block_sparse_moe.gate.weight"}
    expert: ClassVar = NUMBERED_EXPERT
    prefix = "block_sparse_moe"

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        keys.expect("hidden_act", "silu")
        max_seq_len = keys.count("max_position_embeddings", 131072)
        rope = keys.rope(1e6, max_seq_len)
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
            max_seq_len=max_seq_len,
            tie_embedding=keys.flag("tie_word_embeddings", default=False),
            own=MixtralConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-5),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                sliding_window=keys.count("sliding_window", 0, least=0) or None,
            ),
        )
