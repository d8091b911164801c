"""gpt-oss: windows shorter than the prompts, sinks, biases, limits that some hidden values are beyond."""

from torch import Tensor

from tests.families.case import Case, Json

_TYPES = ["full_attention", "sliding_attention", "full_attention"]


def _strong(name: str, tensor: Tensor) -> None:
    """Sinks that take a good part of what heads see, and hidden values on both sides of the limit."""
    if name.endswith("sinks"):
        tensor.mul_(6).add_(1)
    if name.endswith("gate_up_proj"):
        tensor.mul_(2)


def _say_default(data: Json) -> None:
    """Without a scaling a gpt-oss has yarn."""
    data["rope_scaling"] = data["rope_scaling"] or {"type": "default"}


GPT_OSS = Case(
    "gpt_oss",
    "GptOss",
    {
        "intermediate_size": 56,
        "head_dim": 10,
        "num_local_experts": 7,
        "num_experts_per_tok": 3,
        "sliding_window": 9,
        "swiglu_limit": 1.1,
    },
    {
        "other layers": {"layer_types": _TYPES, "sliding_window": 5},
        "no windows": {"layer_types": ["full_attention"] * 3},
        "no biases": {"attention_bias": False},
        "another gate": {"swiglu_alpha": 0.7, "swiglu_limit": 7.0},
        "yarn": {"rope_parameters": None},
        "other yarn": {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 3e3,
                "factor": 4.0,
                "original_max_position_embeddings": 40,
            },
        },
        "odd sizes": {"hidden_size": 39, "intermediate_size": 13, "num_local_experts": 5, "head_dim": 6},
        "tied": {"tie_word_embeddings": True},
    },
    age=_say_default,
    adjust=_strong,
)
