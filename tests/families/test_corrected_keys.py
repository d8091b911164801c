"""Keys of the configs of gpt-oss, ERNIE 4.5 and MiniMax-M2: what they mean, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest

from moe_model.checkpoint.hugging_face.folder import read_config
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families.ernie4_5_moe.config import ErnieConfig
from moe_model.families.gpt_oss.config import GptOssConfig
from moe_model.families.minimax_m2.config import MiniMaxConfig
from moe_model.layers.specs import RotaryScaling


def ours(model_type: str, **keys: Any) -> ModelConfig:
    return read_config({"model_type": model_type, **keys}, Path("config.json"))[1]


def refused(model_type: str, message: str, **keys: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.json: {message}"):
        ours(model_type, **keys)


def gpt_oss(**keys: Any) -> GptOssConfig:
    own = ours("gpt_oss", num_hidden_layers=3, **keys).own
    assert isinstance(own, GptOssConfig)
    return own


# m(1) at factor 32.
_YARN = RotaryScaling("yarn", 32.0, 4096, 1.0, 32.0, truncate=False, attention_factor=1.3465735902799727)
_TRUNCATED = RotaryScaling("yarn", 32.0, 4096, 1.0, 32.0, truncate=True, attention_factor=1.3465735902799727)
_OLD = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("keys", "theta", "scaling"),
    [
        ({}, 150000.0, _YARN),
        ({"rope_scaling": None, "rope_theta": 7e4}, 7e4, _YARN),
        ({"rope_scaling": {**_OLD, "truncate": False}, "rope_theta": 7e4}, 7e4, _YARN),
        ({"rope_scaling": {"type": "yarn", **dict(list(_OLD.items())[1:]), "truncate": False}}, 15e4, _YARN),
        ({"rope_parameters": {**_OLD, "truncate": False, "rope_theta": 8e4}}, 8e4, _YARN),
        ({"rope_parameters": {**_OLD, "rope_theta": 8e4}}, 8e4, _TRUNCATED),
        ({"rope_parameters": {"rope_type": "default"}}, 15e4, None),
    ],
)
def test_positions_of_gpt_oss_in_any_spelling(
    keys: dict[str, Any], theta: float, scaling: RotaryScaling | None
) -> None:
    own = gpt_oss(**keys)
    assert (own.rope_theta, own.rope_scaling) == (theta, scaling)


def test_windows_of_gpt_oss() -> None:
    assert gpt_oss().windows(3) == (128, None, 128)
    assert gpt_oss(sliding_window=9).windows(3) == (9, None, 9)
    assert gpt_oss(sliding_window=None).windows(3) == (None, None, None)
    types = ["full_attention", "full_attention", "sliding_attention"]
    assert gpt_oss(layer_types=types).windows(3) == (None, None, 128)


@pytest.mark.parametrize(
    ("message", "keys"),
    [
        ("layer_types: 2 for 3 layers", {"layer_types": ["full_attention"] * 2}),
        ("layer_types: 'chunked_attention' is neither", {"layer_types": ["chunked_attention"] * 3}),
        ("layer_types: expected a list of texts", {"layer_types": [1, 2, 3]}),
        ("experts_per_token: 5 is not supported", {"experts_per_token": 5}),
        ("hidden_act: 'gelu' is not supported", {"hidden_act": "gelu"}),
        ("swiglu_limit: -1 is not a number above 0", {"swiglu_limit": -1}),
        ("attention_bias: expected true or false", {"attention_bias": 1}),
        ("rope_scaling: rope_type 'longrope' is not supported", {"rope_scaling": {"rope_type": "longrope"}}),
        ("rope_scaling: type 'ntk' is not supported", {"rope_scaling": {"type": "ntk"}}),
        ("unknown key 'auto_map'", {"auto_map": {"AutoModel": "modeling_gpt_oss.Model"}}),
        ("unknown key 'clip_qkv'", {"clip_qkv": 3.0}),
    ],
)
def test_what_gpt_oss_has_not_is_refused(message: str, keys: dict[str, Any]) -> None:
    refused("gpt_oss", message, num_hidden_layers=3, **keys)


@pytest.mark.parametrize(
    ("keys", "dense"),
    [
        ({}, (0,)),
        ({"moe_layer_start_index": 0}, ()),
        ({"moe_layer_start_index": 2, "moe_layer_end_index": 3}, (0, 1, 4, 5)),
        ({"moe_layer_start_index": 0, "moe_layer_end_index": 0}, (1, 2, 3, 4, 5)),
        ({"moe_layer_interval": 2}, (0, 2, 4)),
    ],
)
def test_which_layers_of_ernie_have_experts(keys: dict[str, int], dense: tuple[int, ...]) -> None:
    assert ours("ernie4_5_moe", num_hidden_layers=6, **keys).dense_layers == dense


def test_widths_of_ernie() -> None:
    config = ours("ernie4_5_moe", intermediate_size=50, moe_intermediate_size=7, moe_num_shared_experts=3)
    assert isinstance(config.own, ErnieConfig)
    assert (config.d_ff, config.own.dense_width, config.own.shared_width) == (7, 50, 21)


@pytest.mark.parametrize(
    ("message", "keys"),
    [
        ("use_bias: True is not supported", {"use_bias": True}),
        ("moe_gate: 'switch' is not supported", {"moe_gate": "switch"}),
        ("moe_gate_act: 'sigmoid' is not supported", {"moe_gate_act": "sigmoid"}),
        ("moe_use_aux_free: False is not supported", {"moe_use_aux_free": False}),
        (r"moe_num_experts: expected a whole number, got list", {"moe_num_experts": [64, 64]}),
        ("dense_layers: 4 of 4 layers", {"moe_layer_start_index": 9}),
    ],
)
def test_what_ernie_has_not_is_refused(message: str, keys: dict[str, Any]) -> None:
    refused("ernie4_5_moe", message, num_hidden_layers=4, **keys)


@pytest.mark.parametrize(
    ("keys", "rotary_dim"),
    [
        ({}, None),
        ({"rotary_dim": 64}, 64),
        ({"rotary_dim": 128}, None),
        ({"partial_rotary_factor": 0.25}, 32),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}, "rotary_dim": 64}, 64),
    ],
)
def test_how_much_of_a_head_turns_in_a_minimax(keys: dict[str, Any], rotary_dim: int | None) -> None:
    config = ours("minimax_m2", **keys)
    assert isinstance(config.own, MiniMaxConfig)
    assert config.own.rotary_dim == rotary_dim


@pytest.mark.parametrize(
    ("message", "keys"),
    [
        (
            "rotary_dim: 64, but partial_rotary_factor makes it 32",
            {"rotary_dim": 64, "partial_rotary_factor": 0.25},
        ),
        ("qk_norm_type: 'per_head' is not supported", {"qk_norm_type": "per_head"}),
        ("use_qk_norm: False is not supported", {"use_qk_norm": False}),
        ("scoring_func: 'softmax' is not supported", {"scoring_func": "softmax"}),
        ("use_routing_bias: False is not supported", {"use_routing_bias": False}),
        ("shared_intermediate_size: 1536 is not supported", {"shared_intermediate_size": 1536}),
        ("sliding_window: 4096 is not supported", {"sliding_window": 4096}),
        ("layernorm_mlp_beta: 3.5 is not supported", {"layernorm_mlp_beta": 3.5}),
        ("attn_type_list: is not 1 for each of 3 layers", {"attn_type_list": [1, 0, 1]}),
        ("attn_type_list: is not 1 for each of 3 layers", {"attn_type_list": [1, 1]}),
        ("head_dim: 33 values cannot turn", {"rotary_dim": 33}),
        ("rotary_dim: 130 is more than head_dim 128", {"rotary_dim": 130}),
        (r"own: rotary_dim: 0 is not in|rotary_dim: 0 is not in", {"partial_rotary_factor": 0.001}),
        ("head_dim: 1 values cannot turn", {"head_dim": None, "num_attention_heads": 4000}),
    ],
)
def test_what_a_minimax_has_not_is_refused(message: str, keys: dict[str, Any]) -> None:
    refused("minimax_m2", message, num_hidden_layers=3, **keys)
