"""Families whose choice of experts is corrected, without groups of experts."""

from tests.families.case import Case, Json

ERNIE = Case(
    "ernie4_5_moe",
    "Ernie4_5_Moe",
    {
        "intermediate_size": 52,
        "moe_intermediate_size": 28,
        "head_dim": 10,
        "moe_num_experts": 7,
        "moe_k": 3,
        "moe_num_shared_experts": 2,
        "num_hidden_layers": 4,
    },
    {
        "each second layer": {"moe_layer_interval": 2, "moe_layer_start_index": 0},
        "layers between": {
            "moe_layer_start_index": 2,
            "moe_layer_end_index": 2,
            "tie_word_embeddings": False,
        },
        "no shared expert": {"moe_num_shared_experts": 0},
        "a large divisor": {"moe_norm_min": 0.95},
        "plain heads": {"head_dim": 8, "hidden_size": 48},
    },
)


def _old_minimax(data: Json) -> None:
    """The published files say how many values of a head turn, and much that is the same in all of them."""
    factor = data.pop("partial_rotary_factor", None)
    if factor is not None:
        data["rotary_dim"] = round(factor * data["head_dim"])
    data |= {
        "attn_type_list": [1] * data["num_hidden_layers"],
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "shared_intermediate_size": 0,
        "mtp_transformer_layers": 1,
    }


MINIMAX = Case(
    "minimax_m2",
    "MiniMaxM2",
    {
        "intermediate_size": 56,
        "head_dim": 10,
        "num_local_experts": 7,
        "num_experts_per_tok": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.6},
    },
    {
        "whole heads turn": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
        "one of each": {"num_key_value_heads": 1, "num_experts_per_tok": 1, "num_hidden_layers": 1},
        "tied": {"tie_word_embeddings": True},
    },
    age=_old_minimax,
)
CORRECTED = (ERNIE, MINIMAX)
