"""ModelConfig: what it accepts, and that every refusal is one line naming the field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_model import ModelConfig
from moe_model.config import LIMITS
from moe_model.errors import ConfigError
from moe_model.families import read_model_config
from moe_model.families.mixtral.config import MixtralConfig


def test_the_defaults_are_modularforges() -> None:
    assert ModelConfig().to_dict() == {
        "family": "modularforge",
        "d_model": 512,
        "n_heads": 8,
        "n_layers": 4,
        "d_ff": 2048,
        "n_experts": 5,
        "top_k": 2,
        "vocab_size": 16384,
        "max_seq_len": 512,
        "tie_embedding": True,
    }
    assert ModelConfig().head_dim == 64


@given(
    n_heads=st.integers(1, 8),
    head_dim=st.integers(1, 64),
    n_experts=st.integers(1, 64),
    data=st.data(),
    tie_embedding=st.booleans(),
)
def test_json_round_trip(
    n_heads: int, head_dim: int, n_experts: int, data: st.DataObject, tie_embedding: bool
) -> None:
    config = ModelConfig(
        d_model=n_heads * head_dim,
        n_heads=n_heads,
        n_experts=n_experts,
        top_k=data.draw(st.integers(1, n_experts)),
        tie_embedding=tie_embedding,
    )
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.head_dim == head_dim


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("bad", [0, -1, LIMITS["max_seq_len"] + 1, 2**70, True, 2.0, "2", None, [2], {}])
def test_a_bad_count_is_refused_by_name(name: str, bad: object) -> None:
    data = ModelConfig().to_dict() | {name: bad}
    with pytest.raises(ConfigError, match=rf"^where: {name}: ") as caught:
        ModelConfig.from_dict(data, where="where")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": 3}, "family: expected a string, got int"),
        ({"tie_embedding": 1}, "tie_embedding: expected true or false, got int"),
        ({"top_k": 6}, "top_k: 6 is more than n_experts 5"),
        ({"n_heads": 7}, "n_heads: 7 does not divide d_model 512"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"a\nb" * 100: 1}, "unknown key 'a"),
        ({"n_kv_heads": 3}, "n_kv_heads: 3 does not divide n_heads 8"),
        ({"n_kv_heads": 0}, "n_kv_heads: 0 is not in"),
        ({"head_dim": 0}, "head_dim: 0 is not in"),
        ({"head_dim": 2**70}, "head_dim: a number of more than 64 bits is not in"),
        ({"dense_layers": 1}, "dense_layers: expected a list, got int"),
        ({"dense_layers": [4]}, "dense_layers: 4 is not in [0, 4)"),
        ({"dense_layers": [True]}, "dense_layers: True is not in [0, 4)"),
        ({"dense_layers": [1, 0]}, "dense_layers: are not in order"),
        ({"dense_layers": [1, 1]}, "dense_layers: are not in order"),
        ({"dense_layers": [0, 1, 2, 3]}, "dense_layers: 4 of 4 layers"),
        ({"own": []}, "own: expected an object, got list"),
        ({"own": {"theta": 1}}, "own: unknown key 'theta'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(ModelConfig().to_dict() | change, where="x")
    assert str(caught.value).startswith(f"x: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ModelConfig().to_dict())
def test_a_missing_key_is_refused_by_name(missing: str) -> None:
    data = ModelConfig().to_dict()
    del data[missing]
    with pytest.raises(ConfigError, match=f"missing key '{missing}'"):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_only_an_object_is_a_config(data: object) -> None:
    with pytest.raises(ConfigError, match="expected an object"):
        ModelConfig.from_dict(data)


MIXTRAL = ModelConfig(
    family="mixtral", d_model=10, n_heads=6, n_kv_heads=2, head_dim=4, own=MixtralConfig(1e-3)
)


def test_a_head_size_of_its_own_need_not_fit_the_width() -> None:
    assert (MIXTRAL.n_kv_heads, MIXTRAL.head_dim) == (2, 4)
    assert read_model_config(json.loads(json.dumps(MIXTRAL.to_dict()))) == MIXTRAL
    assert MIXTRAL.to_dict()["own"] == {"norm_eps": 1e-3, "rope_theta": 1e6}


def test_what_is_left_out_has_a_default() -> None:
    data = MIXTRAL.to_dict()
    for key in ("n_kv_heads", "own"):
        del data[key]
    found = read_model_config(data)
    assert (found.n_kv_heads, found.own) == (6, MixtralConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "of_tomorrow"}, "family: unknown 'of_tomorrow'; known: modularforge, mixtral"),
        ({"own": {"norm_eps": 0}}, "own: norm_eps: 0 is not a number in"),
        ({"own": {"norm_eps": "1"}}, "own: norm_eps: '1' is not a number in"),
        ({"own": {"rope_theta": True}}, "own: rope_theta: True is not a number in"),
        ({"own": {"unheard_of": 1}}, "own: unknown key 'unheard_of'"),
        ({"dense_layers": [0]}, "dense_layers: every layer of this family has experts"),
        ({"head_dim": 5}, "head_dim: 5 values cannot"),
        ({"family": "modularforge", "own": {}}, "n_kv_heads: 2 is not n_heads 6"),
        ({"family": "modularforge", "own": {}, "n_kv_heads": 6}, "head_dim: 4 is not d_model / n_heads"),
    ],
)
def test_a_family_checks_what_is_its_own(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_model_config(MIXTRAL.to_dict() | change, "m")
    assert str(caught.value).startswith(f"m: {message}")


def test_experts_of_layers() -> None:
    config = ModelConfig(dense_layers=(0, 2))
    assert config.moe_layers == (1, 3)
    assert [len(config.experts_of(layer)) for layer in range(4)] == [0, 5, 0, 5]
    assert config.num_expert_modules == 10
