"""A key that a config.json does not have means what transformers' class has for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from moe_model.checkpoint.hugging_face.folder import read_config
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families import HUGGING_FACE

# Of a type that the library has under another name: the same network as the second one.
_SAME = {"kimi_k2": "deepseek_v3"}
# Without these there is no model that could be.
_NEEDED = {"deepseek_v2": {"num_experts_per_tok": 6}, "glm4_moe": {"head_dim": 128}}
MODEL_TYPES = [name for name in HUGGING_FACE if name not in _SAME]


def ours(data: dict[str, Any]) -> ModelConfig:
    return read_config(data, Path("config.json"))[1]


def smallest(model_type: str) -> dict[str, Any]:
    return {"model_type": model_type, **_NEEDED.get(model_type, {})}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_absent_key_has_the_default_of_the_library(model_type: str) -> None:
    needed = smallest(model_type)
    config = transformers.CONFIG_MAPPING[model_type](**_NEEDED.get(model_type, {}))
    full: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    expected = ours(full)
    assert ours(needed) == expected
    for key in full.keys() - needed.keys():
        assert ours({name: value for name, value in full.items() if name != key}) == expected, key


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_key_that_is_not_known_is_refused(model_type: str) -> None:
    with pytest.raises(ConfigError, match=r"config.json: unknown key 'of_another_model'"):
        ours(smallest(model_type) | {"of_another_model": 1})
