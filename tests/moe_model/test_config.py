"""ModelConfig: what it accepts, and that every refusal is one line naming the field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_model import ModelConfig
from moe_model.config import LIMITS
from moe_model.errors import ConfigError


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
