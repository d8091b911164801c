"""Families of DeepSeek's, with latent attention, and the one that took over their router."""

from tests.families.case import Case, Json

# Both of yarn's effects, of different sizes: on sines and cosines, and on the scale of attention.
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 3e3,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
    "mscale": 0.9,
    "mscale_all_dim": 0.6,
}
_LATENT: Json = {
    "num_key_value_heads": 6,
    "hidden_size": 42,
    "kv_lora_rank": 22,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 9,
    "intermediate_size": 50,
    "moe_intermediate_size": 26,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
    "rope_parameters": _YARN,
}
_VARIANTS: Json = {
    "no yarn": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    "yarn of one kind": {"rope_parameters": {**_YARN, "mscale": None, "mscale_all_dim": 0.6}},
    "yarn without a scale": {"rope_parameters": {**_YARN, "mscale": None, "mscale_all_dim": None}},
    "plain queries": {"q_lora_rank": None},
    "biases": {"attention_bias": True},
    "plain queries, biases": {"q_lora_rank": None, "attention_bias": True},
    "no dense layer, tied": {"first_k_dense_replace": 0, "tie_word_embeddings": True},
    "two dense layers, one shared expert": {"first_k_dense_replace": 2, "n_shared_experts": 1},
}


def _age(data: Json) -> None:
    """What the authors' own files say beside, or do not say."""
    data |= {"ep_size": 1, "seq_aux": True, "aux_loss_alpha": 0.001, "pretraining_tp": 1, "moe_layer_freq": 1}
    for name in ("head_dim", "qk_head_dim", "mlp_bias", "rope_interleave"):
        if data.get(name) is not False:
            data.pop(name, None)


def _age_v2(data: Json) -> None:
    _age(data)
    data |= {"scoring_func": "softmax", "auto_map": _code("V2")}


def _age_v3(data: Json) -> None:
    _age(data)
    data |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "auto_map": _code("V3")}


def _age_kimi(data: Json) -> None:
    _age_v3(data)
    data["model_type"] = "kimi_k2"


def _age_glm(data: Json) -> None:
    """Half of a head turns where the file does not say so."""
    if data["partial_rotary_factor"] == 0.5:
        del data["partial_rotary_factor"]


def _code(version: str) -> Json:
    return {
        "AutoConfig": f"configuration_deepseek.Deepseek{version}Config",
        "AutoModel": f"modeling_deepseek.Deepseek{version}Model",
        "AutoModelForCausalLM": f"modeling_deepseek.Deepseek{version}ForCausalLM",
    }


DEEPSEEK_V2 = Case(
    "deepseek_v2",
    "DeepseekV2",
    {
        **_LATENT,
        "q_lora_rank": 14,
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
    },
    {
        **_VARIANTS,
        "greedy": {"topk_method": "greedy", "n_routed_experts": 7},
        "greedy in spite of groups": {"topk_method": "greedy", "n_group": 4, "topk_group": 1},
    },
    age=_age_v2,
)
DEEPSEEK_V3 = Case(
    "deepseek_v3",
    "DeepseekV3",
    {
        **_LATENT,
        "q_lora_rank": 14,
        "n_routed_experts": 15,
        "num_experts_per_tok": 4,
        "n_group": 5,
        "topk_group": 2,
    },
    {
        **_VARIANTS,
        "halves turn": {"rope_interleave": False},
        "weights as they are": {"norm_topk_prob": False},
        "one group": {"n_group": 1, "topk_group": 1, "n_routed_experts": 7, "num_experts_per_tok": 3},
        "all groups": {"n_group": 5, "topk_group": 5},
    },
    age=_age_v3,
)
# Its folders are those of DeepSeek-V3, but for the name of the type and the sizes.
KIMI_K2 = Case(
    "kimi_k2",
    "DeepseekV3",
    {
        **_LATENT,
        "q_lora_rank": 14,
        "n_routed_experts": 7,
        "num_experts_per_tok": 3,
        "n_group": 1,
        "topk_group": 1,
        "rope_parameters": {
            **_YARN,
            "beta_fast": 1.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    served=(),
    age=_age_kimi,
)
GLM4_MOE = Case(
    "glm4_moe",
    "Glm4Moe",
    {
        "head_dim": 12,
        "intermediate_size": 50,
        "moe_intermediate_size": 26,
        "n_routed_experts": 7,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.7,
        "use_qk_norm": True,
        "attention_bias": True,
    },
    {
        "air": {"use_qk_norm": False},
        "no biases, tied": {"attention_bias": False, "tie_word_embeddings": True},
        "a third turns": {"rope_parameters": {"rope_theta": 5e4, "partial_rotary_factor": 1 / 3}},
        "all turns": {"rope_parameters": {"rope_theta": 5e4, "partial_rotary_factor": 1.0}},
        "yarn": {"rope_parameters": {**_YARN, "mscale": None, "mscale_all_dim": None}},
        "groups": {"n_routed_experts": 12, "n_group": 4, "topk_group": 2},
        "weights as they are": {"norm_topk_prob": False, "first_k_dense_replace": 0},
    },
    age=_age_glm,
)
LATENT = (DEEPSEEK_V2, DEEPSEEK_V3, KIMI_K2, GLM4_MOE)
