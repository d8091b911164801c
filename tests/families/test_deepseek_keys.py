"""The keys of config.json of DeepSeek's families and GLM-4.5: what is refused, and what is published."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families import HUGGING_FACE, family_named, read_model_config
from moe_model.families.hugging_face import ConfigKeys

MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "glm4_moe")
PUBLISHED = Path(__file__).parents[2] / "benchmarks/published"
# What must be said: the class has no default of it, or one of which no half can turn in pairs.
NEEDED: dict[str, dict[str, Any]] = {"deepseek_v2": {"num_experts_per_tok": 6}, "glm4_moe": {"head_dim": 128}}


def read(model_type: str, data: dict[str, Any]) -> ModelConfig:
    family = family_named(HUGGING_FACE[model_type])
    assert family.hugging_face is not None
    keys = ConfigKeys({"model_type": model_type, **data})
    config = family.hugging_face.read_config(keys)
    keys.finish()
    family.check(config)
    return config


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_a_manifest_says_of_it_is_read_back(model_type: str) -> None:
    config = read(model_type, NEEDED.get(model_type, {}))
    assert read_model_config(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("deepseek_v2", {"num_experts_per_tok": None}, "num_experts_per_tok: is missing"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func: 'sigmoid' is not supported"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method: 'noaux_tc' is not supported"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "n_group: is missing"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 8}, "topk_group: is missing"),
        (
            "deepseek_v2",
            {"topk_method": "group_limited_greedy", "n_group": 7, "topk_group": 2},
            "n_group: 64 experts cannot be in 7 groups",
        ),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob: True is not supported"),
        ("deepseek_v2", {"mlp_bias": True}, "mlp_bias: True is not supported"),
        ("deepseek_v2", {"rope_interleave": False}, "unknown key 'rope_interleave'"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func: 'softmax' is not supported"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method: 'greedy' is not supported"),
        ("deepseek_v3", {"topk_group": 9}, "topk_group: 9 is more than n_group 8"),
        ("deepseek_v3", {"n_group": 256, "topk_group": 128}, "n_group: 256 experts cannot be in 256 groups"),
        ("deepseek_v3", {"num_experts_per_tok": 33, "topk_group": 1}, "1 groups of 32 experts have not 33"),
        (
            "deepseek_v3",
            {"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2.0}},
            "yarn has no frequencies for theta 1.0",
        ),
        ("kimi_k2", {"topk_method": "greedy"}, "topk_method: 'greedy' is not supported"),
        ("glm4_moe", {"partial_rotary_factor": 1.5}, "turning_width: 192 is more than head_dim 128"),
        ("glm4_moe", {"mscale_all_dim": 1.0}, "unknown key 'mscale_all_dim'"),
        ("glm4_moe", {"moe_layer_freq": 1}, "unknown key 'moe_layer_freq'"),
        *(
            (model_type, changes, message)
            for model_type in ("deepseek_v2", "deepseek_v3")
            for changes, message in (
                ({"moe_layer_freq": 2}, "moe_layer_freq: 2 is not supported"),
                ({"num_key_value_heads": 1}, "num_key_value_heads: 1 is not supported"),
                ({"qk_rope_head_dim": 3}, "3 values cannot turn in pairs"),
                ({"kv_lora_rank": 0}, "kv_lora_rank: 0 is not in"),
                ({"routed_scaling_factor": 0}, "routed_scaling_factor: 0 is not a number above 0"),
                ({"auto_map": {"AutoModel": "modeling_mine.Model"}}, "auto_map: 'modeling_mine.Model'"),
                ({"index_topk": 2048}, "unknown key 'index_topk'"),
            )
        ),
        *(
            (model_type, changes, message)
            for model_type in MODEL_TYPES
            for changes, message in (
                ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
                ({"first_k_dense_replace": 99}, "dense_layers: 99 of "),
                ({"rope_scaling": {"type": "longest"}}, "rope_scaling: type 'longest' is not supported"),
                (
                    {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}},
                    "rope_scaling: unknown key 'mscale_all_dim'",
                ),
                ({"sliding_window": 4}, "unknown key 'sliding_window'"),
            )
        ),
    ],
    ids=str,
)
def test_what_is_not_built_is_refused_by_its_key(
    model_type: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(model_type, NEEDED.get(model_type, {}) | changes)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        *(
            (model_type, {"choice": bad}, "choice: expected an object")
            for model_type in MODEL_TYPES
            for bad in (None, 5, "")
        ),
        ("glm4_moe", {"choice": []}, "choice: expected an object"),
        ("deepseek_v3", {"latent": None}, "latent: expected an object"),
        ("deepseek_v3", {"latent": {"latent_rank": -1}}, "latent_rank: -1 is not in"),
        ("deepseek_v3", {"latent": {"has_biases": 1}}, "has_biases: expected true or false"),
        ("deepseek_v3", {"latent": {"plain_width": 100}}, "head_dim: 192 is not plain_width"),
        ("deepseek_v2", {"latent": {"query_rank": 0}}, "query_rank: 0 is not in"),
        ("deepseek_v3", {"latent": {"yarn_scale": 1.5}}, "yarn_scale 1.5 goes with a yarn of a factor"),
        (
            "deepseek_v3",
            {"latent": {"yarn_scale": 1.5}, "rope_scaling": {"kind": "yarn", "factor": 1.0}},
            "yarn_scale 1.5 goes with a yarn of a factor",
        ),
        ("deepseek_v2", {"choice": {"n_group": 65}}, "n_group: 64 experts cannot be in 65 groups"),
        ("deepseek_v2", {"choice": {"routed_scaling_factor": 1e99}}, "routed_scaling_factor: 1e"),
        ("deepseek_v2", {"shared_width": -1}, "shared_width: -1 is not in"),
        ("deepseek_v2", {"dense_width": 0, "rope_scaling": []}, "rope_scaling: expected an object"),
        ("glm4_moe", {"turning_width": 300}, "turning_width: 300 is more than head_dim 128"),
        ("glm4_moe", {"has_head_norms": "yes"}, "has_head_norms: expected true or false"),
    ],
    ids=str,
)
def test_a_manifest_that_is_wrong_is_refused_by_its_key(
    model_type: str, changes: dict[str, Any], message: str
) -> None:
    data = json.loads(json.dumps(read(model_type, NEEDED.get(model_type, {})).to_dict()))
    data["own"] |= changes
    with pytest.raises(ConfigError, match=message):
        read_model_config(data)


def test_null_is_what_python_takes_it_for() -> None:
    config = read("deepseek_v3", {"norm_topk_prob": None, "rope_interleave": None, "n_group": None})
    assert config == read(
        "deepseek_v3", {"norm_topk_prob": False, "rope_interleave": False, "n_group": 1, "topk_group": 1}
    )
    assert config != read("deepseek_v3", {})


@pytest.mark.parametrize(
    ("name", "params", "active", "kept"),
    [
        # Billions as the authors give them, and what a layer keeps of a token.
        ("deepseek-v2-lite", 15.7, 2.7, 512 + 64),
        ("deepseek-v3", 671.0, 37.6, 512 + 64),
        ("kimi-k2", 1026.4, 32.9, 512 + 64),
        ("moonlight-16b-a3b", 16.0, 2.9, 512 + 64),
        ("glm-4.5-air", 106.9, 13.4, 2 * 8 * 128),
    ],
)
def test_published_configs_are_read(name: str, params: float, active: float, kept: int) -> None:
    data = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    data.pop("quantization_config", None)
    config = read(data["model_type"], data)
    family = family_named(config.family)
    assert family.num_params(config) / 1e9 == pytest.approx(params, abs=0.06)
    assert family.num_active_params_per_token(config) / 1e9 == pytest.approx(active, abs=0.06)
    assert family.cache_spec(config).values_per_token == kept * config.n_layers
