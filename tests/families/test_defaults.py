"""A key that a config.json does not have means what transformers' class has for it; keys of any value."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_model.checkpoint.hugging_face.folder import read_config
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families import HUGGING_FACE, family_of, read_model_config
from tests.examples import examples

# Of a type that the library has under another name: the same network as the second one.
_SAME = {"kimi_k2": "deepseek_v3"}
# Without these there is no model that could be.
_NEEDED = {"deepseek_v2": {"num_experts_per_tok": 6}, "glm4_moe": {"head_dim": 128}}
MODEL_TYPES = [name for name in HUGGING_FACE if name not in _SAME]


def ours(data: dict[str, Any]) -> ModelConfig:
    return read_config(data, Path("config.json"))[1]


def smallest(model_type: str) -> dict[str, Any]:
    return {"model_type": model_type, **_NEEDED.get(model_type, {})}


def full_config(model_type: str) -> dict[str, Any]:
    """As transformers writes it."""
    config = transformers.CONFIG_MAPPING[model_type](**_NEEDED.get(model_type, {}))
    full: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return full


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_absent_key_has_the_default_of_the_library(model_type: str) -> None:
    needed = smallest(model_type)
    full = full_config(model_type)
    expected = ours(full)
    assert ours(needed) == expected
    for key in full.keys() - needed.keys():
        assert ours({name: value for name, value in full.items() if name != key}) == expected, key


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_key_that_is_not_known_is_refused(model_type: str) -> None:
    with pytest.raises(ConfigError, match=r"config.json: unknown key 'of_another_model'"):
        ours(smallest(model_type) | {"of_another_model": 1})


_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, -1, 1, 2, 3, 7, 64, 10**9, 10**400, 0.5, -0.5, 1e-30, 1e300, float("inf")]),
        st.sampled_from(["", "yarn", "default", "silu", "sliding_attention", "x" * 300]),
    ),
    lambda each: st.one_of(
        st.lists(each, max_size=3), st.dictionaries(st.sampled_from(["rope_type", "factor", "type"]), each)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@given(data=st.data())
@settings(max_examples=examples(60))
def test_any_value_of_a_key_is_read_or_refused(model_type: str, data: st.DataObject) -> None:
    """In one line; and what is read is a decoder that can be."""
    full = full_config(model_type)
    keys = st.sampled_from(sorted(full.keys() - {"model_type"}))
    changed = full | data.draw(st.dictionaries(keys, _VALUES, min_size=1, max_size=3))
    read: ModelConfig | ConfigError
    try:
        read = ours(changed)
    except ConfigError as error:
        read = error
    if isinstance(read, ConfigError):
        assert "\n" not in str(read)
        assert len(str(read)) < 500
    else:
        family_of(read).check(read)
        assert read_model_config(json.loads(json.dumps(read.to_dict()))) == read
