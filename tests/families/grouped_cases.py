"""Families with grouped-query attention and gated experts."""

from tests.families.case import Case, Json

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
# Variants of the first model that they are read for.
_YARN_BY_HAND = _YARN | {"attention_factor": 1.3, "beta_fast": 20, "beta_slow": 2, "truncate": False}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 3e3, "factor": 2.0}
_ROPES = {
    kind: {"rope_parameters": rope}
    for kind, rope in {
        "yarn": _YARN,
        "yarn by hand": _YARN_BY_HAND,
        "llama3": _LLAMA3,
        "linear": _LINEAR,
        "dynamic": _DYNAMIC,
    }.items()
}


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
    served=("", "window"),
)


def _one_name_of_experts(data: Json) -> None:
    """What version 5 calls `num_local_experts` had another name in the files of Qwen."""
    data["num_experts"] = data.pop("num_local_experts", data.get("num_experts"))
    data["max_window_layers"] = 2


QWEN3_MOE = Case(
    "qwen3_moe",
    "Qwen3Moe",
    {
        "num_hidden_layers": 4,
        "head_dim": 14,
        "intermediate_size": 52,
        "moe_intermediate_size": 28,
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "mlp_only_layers": [2],
    },
    {
        "window": {"use_sliding_window": True, "sliding_window": 9},
        "window that does not count": {"sliding_window": 9},
        "weights as they are": {"norm_topk_prob": False},
        "biases": {"attention_bias": True},
        "every second layer": {"decoder_sparse_step": 2, "mlp_only_layers": [0, 9]},
        "tied": {"tie_word_embeddings": True, "num_key_value_heads": 6},
        **_ROPES,
    },
    age=_one_name_of_experts,
)


def _no_layer_types(data: Json) -> None:
    """Nor did files have a list of them; a window that does not count was there all the same."""
    del data["layer_types"]
    data["sliding_window"] = data["sliding_window"] or 9


QWEN2_MOE = Case(
    "qwen2_moe",
    "Qwen2Moe",
    {
        "num_hidden_layers": 4,
        "hidden_size": 48,
        "intermediate_size": 52,
        "moe_intermediate_size": 28,
        "shared_expert_intermediate_size": 36,
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "mlp_only_layers": [1],
    },
    {
        "window": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3},
        "weights add up": {"norm_topk_prob": True},
        "no biases": {"qkv_bias": False, "head_dim": 10},
        "every second layer": {"decoder_sparse_step": 2, "mlp_only_layers": None},
        "tied": {"tie_word_embeddings": True, "num_key_value_heads": 6},
    },
    served=("", "window"),
    age=_no_layer_types,
)
OLMOE = Case(
    "olmoe",
    "Olmoe",
    {
        "hidden_size": 48,
        "intermediate_size": 28,
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "clip_qkv": 0.9,
    },
    {
        "not clamped": {"clip_qkv": None},
        "weights add up": {"norm_topk_prob": True},
        "biases": {"attention_bias": True},
        "plain heads": {"num_key_value_heads": None, "tie_word_embeddings": True},
    },
)
FLEX_OLMO = Case(
    "flex_olmo",
    "FlexOlmo",
    {"hidden_size": 48, "intermediate_size": 28, "num_experts": 7, "num_experts_per_tok": 5},
    {
        "weights add up": {"norm_topk_prob": True},
        "biases": {"attention_bias": True},
        "plain heads": {"num_key_value_heads": None, "tie_word_embeddings": True},
    },
)
_GRANITE = {
    "hidden_size": 48,
    "intermediate_size": 28,
    "num_local_experts": 7,
    "num_experts_per_tok": 3,
    "attention_multiplier": 0.21,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.5,
    "tie_word_embeddings": True,
}
GRANITEMOE = Case(
    "granitemoe",
    "GraniteMoe",
    _GRANITE,
    {
        "not tied": {"tie_word_embeddings": False},
        "biases": {"attention_bias": True},
        "no multipliers": dict.fromkeys(
            ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"), 1
        ),
        "plain heads": {"num_key_value_heads": None},
    },
)
GRANITEMOESHARED = Case(
    "granitemoeshared",
    "GraniteMoeShared",
    _GRANITE | {"shared_intermediate_size": 20},
    {"nothing shared": {"shared_intermediate_size": 0}},
)
GROUPED = (MIXTRAL, QWEN3_MOE, QWEN2_MOE, OLMOE, FLEX_OLMO, GRANITEMOE, GRANITEMOESHARED)
