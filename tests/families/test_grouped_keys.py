"""The keys of a config.json of families with grouped-query attention: other names, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from moe_model.checkpoint.hugging_face.folder import read_config
from moe_model.errors import ConfigError
from moe_model.families import HUGGING_FACE, family_of

Json = dict[str, Any]


@pytest.mark.parametrize("model_type", HUGGING_FACE)
@pytest.mark.parametrize("kind", ["longrope", "su", "mrope", "", 1])
@pytest.mark.parametrize(("where", "key"), [("rope_parameters", "rope_type"), ("rope_scaling", "type")])
def test_another_kind_of_positions_is_refused(model_type: str, kind: object, where: str, key: str) -> None:
    """Never taken for the plain kind: that is right for short prompts alone."""
    data = {"head_dim": 64, "num_experts_per_tok": 2, where: {key: kind, "factor": 2.0}}
    with pytest.raises(ConfigError, match=rf"{where}: {key} .* is not supported"):
        read_config({"model_type": model_type} | data, Path("config.json"))


def test_a_kind_of_positions_that_is_null_is_absent() -> None:
    """Then the older name counts: yarn is never taken for the plain kind."""
    yarn = {"factor": 4.0, "original_max_position_embeddings": 64}
    found, expected = (
        read_config({"model_type": "mixtral", "rope_scaling": keys | yarn}, Path("config.json"))[1]
        for keys in ({"rope_type": None, "type": "yarn"}, {"rope_type": "yarn"})
    )
    assert found == expected


@pytest.mark.parametrize("factor", [{}, {"factor": None}])
def test_a_yarn_without_a_factor_has_that_of_its_positions(factor: Json) -> None:
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 64}
    found, expected = (
        read_config(
            {"model_type": "mixtral", "max_position_embeddings": 256, "rope_parameters": yarn | keys},
            Path("config.json"),
        )[1]
        for keys in (factor, {"factor": 4.0})
    )
    assert found == expected


def test_an_attention_factor_of_0_is_refused() -> None:
    data = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0}
    with pytest.raises(ConfigError, match="rope_parameters: attention_factor: 0 is not a number above 0"):
        read_config({"model_type": "mixtral", "rope_parameters": data}, Path("config.json"))


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen2_moe", "olmoe", "flex_olmo", "mixtral"])
def test_the_number_of_experts_has_two_names(model_type: str) -> None:
    def num_experts(**keys: int) -> int:
        return read_config({"model_type": model_type, **keys}, Path("config.json"))[1].n_experts

    assert num_experts(num_experts=11) == num_experts(num_local_experts=11) == 11
    assert num_experts(num_experts=11, num_local_experts=11) == 11
    with pytest.raises(ConfigError, match=r"config.json: num_\w+: 1\d and num_\w+: 1\d differ"):
        num_experts(num_experts=11, num_local_experts=12)


WIDTHS = {
    "qwen3_moe": {"moe_intermediate_size": 24, "intermediate_size": 40},
    "qwen2_moe": {"moe_intermediate_size": 24, "intermediate_size": 40},
    **{name: {"intermediate_size": 24} for name in ("mixtral", "olmoe", "flex_olmo", "granitemoe")},
}


@pytest.mark.parametrize("model_type", WIDTHS)
def test_the_width_of_an_expert_has_two_names(model_type: str) -> None:
    """What others call `intermediate_size` is of dense layers where experts have a key of their own."""
    config = read_config({"model_type": model_type, **WIDTHS[model_type]}, Path("config.json"))[1]
    assert config.d_ff == 24


NO_WINDOW: list[Json] = [
    {"model_type": "mixtral", "sliding_window": None},
    {"model_type": "mixtral", "sliding_window": 0},
    {"model_type": "qwen3_moe", "sliding_window": 32},
    {"model_type": "qwen3_moe", "use_sliding_window": True, "sliding_window": None},
    {"model_type": "qwen2_moe", "sliding_window": 0},
    {"model_type": "qwen2_moe", "sliding_window": 32, "max_window_layers": 3},
    {"model_type": "qwen2_moe", "use_sliding_window": True, "max_window_layers": 0},
]


@pytest.mark.parametrize("data", NO_WINDOW, ids=str)
def test_no_window_is_no_window(data: Json) -> None:
    config = read_config(data, Path("config.json"))[1]
    assert [group.window for group in family_of(config).cache_spec(config).groups] == [None]


def _layers(kind: str, n_layers: int = 1) -> Json:
    """A list of types for the first layer alone."""
    return {"num_hidden_layers": n_layers, "layer_types": [kind]}


def test_keys_that_qwen3_coder_has_beside_are_read() -> None:
    """Where they say what is so anyway."""
    plain = {"model_type": "qwen3_moe", "num_experts": 160}
    beside = {"use_qk_norm": True, "qkv_bias": False, "shared_expert_intermediate_size": 0}
    more = {"max_window_layers": 62, "sliding_window": None, "unsloth_fixed": True}
    assert read_config(plain | beside | more, Path("c"))[1] == read_config(plain, Path("c"))[1]


REFUSED: list[tuple[str, Json, str]] = [
    ("mixtral", {"sliding_window": True}, "sliding_window: expected a whole number"),
    ("mixtral", {"is_encoder_decoder": True}, "is_encoder_decoder: True is not supported"),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window: 0 is not"),
    ("qwen3_moe", {"num_hidden_layers": 2, "mlp_only_layers": [0, 1]}, "dense_layers: 2 of 2 layers"),
    ("qwen3_moe", {"mlp_only_layers": 3}, "mlp_only_layers: expected a list"),
    ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step: 0 is not"),
    ("qwen3_moe", {"use_qk_norm": False}, "use_qk_norm: False is not supported"),
    (
        "qwen3_moe",
        {"shared_expert_intermediate_size": 9},
        "shared_expert_intermediate_size: 9 is not supported",
    ),
    ("qwen2_moe", {"use_sliding_window": True, "sliding_window": None}, "sliding_window: is null"),
    ("qwen2_moe", _layers("sliding_attention"), "layer_types: some are sliding_attention"),
    ("qwen2_moe", _layers("chunked_attention"), "layer_types: expected full_attention or"),
    ("qwen2_moe", _layers("full_attention", 2), "layer_types: expected .* for each of 2 layers"),
    ("olmoe", {"clip_qkv": 0}, "clip_qkv: 0 is not a number above 0"),
    ("olmoe", {"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
    ("flex_olmo", {"norm_topk_prob": 1}, "norm_topk_prob: expected true or false"),
    ("granitemoe", {"logits_scaling": -1}, "logits_scaling: -1 is not a number above 0"),
    ("granitemoe", {"shared_intermediate_size": 8}, "shared_intermediate_size: 8 is not supported"),
]


@pytest.mark.parametrize(("model_type", "keys", "message"), REFUSED)
def test_what_is_not_built_is_refused_by_the_name_of_its_key(
    model_type: str, keys: Json, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^config.json: {message}"):
        read_config({"model_type": model_type, **keys}, Path("config.json"))
