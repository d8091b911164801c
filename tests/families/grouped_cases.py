"""Families with grouped-query attention and gated experts."""

from tests.families.case import Case

_YARN = {"rope_type": "yarn", "rope_theta": 3e3, "factor": 4.0, "original_max_position_embeddings": 40}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 3e3,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 3e3, "factor": 2.5}
# Not before the kernels turn by them.
ROPES = {"yarn": _YARN, "llama3": _LLAMA3, "linear": _LINEAR}

MIXTRAL = Case(
    "mixtral",
    "Mixtral",
    {"intermediate_size": 56, "head_dim": 10, "num_local_experts": 7, "num_experts_per_tok": 3},
    {
        "window": {"sliding_window": 9},
        "tied": {"tie_word_embeddings": True},
        "plain heads": {
            "head_dim": None,
            "hidden_size": 42,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
        },
        "one of each": {"num_key_value_heads": 1, "num_experts_per_tok": 1, "num_hidden_layers": 1},
        "two experts": {"num_local_experts": 2, "num_experts_per_tok": 2, "rms_norm_eps": 1e-2},
    },
)
GROUPED = (MIXTRAL,)
