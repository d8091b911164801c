"""A Mixtral as its authors publish it: `config.json` of model_type mixtral, and the names of its tensors."""

from typing import ClassVar

from moe_model.config import ModelConfig
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.mixtral.config import MixtralConfig
from moe_model.families.published import NUMBERED_EXPERT, PublishedFolder, read_sizes


class MixtralFolder(PublishedFolder):
    """Reads the Hugging Face folder of a Mixtral."""

    block: ClassVar = {"router.weight": "block_sparse_moe.gate.weight"}
    expert: ClassVar = NUMBERED_EXPERT
    prefix = "block_sparse_moe"
    keys: ClassVar = {
        "n_experts": "num_local_experts",
        "d_ff": "intermediate_size",
        "sliding_window": "sliding_window",
    }

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        sizes = read_sizes(
            keys,
            hidden_size=4096,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_hidden_layers=32,
            num_experts_per_tok=2,
            vocab_size=32000,
            max_position_embeddings=131072,
        )
        rope = keys.rope(1e6, sizes["max_seq_len"])
        return ModelConfig(
            family="mixtral",
            d_ff=keys.count("intermediate_size", 14336),
            n_experts=keys.count_of(("num_local_experts", "num_experts"), 8),
            own=MixtralConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-5),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                sliding_window=keys.count("sliding_window", 0, least=0) or None,
            ),
            **sizes,
        )
