"""What a manifest or a config.json may say: a value that cannot be is refused by the name of its key."""

import copy
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from moe_model.checkpoint.hugging_face.folder import read_config
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from moe_model.families import REGISTRY, family_named, read_model_config
from tests.families.case import COMMON, Case
from tests.families.rows import OWN_FORMAT, case_of

HOSTILE: list[Any] = [
    *(True, -1, 0, 3, 1 << 80, 0.5, -1e-9, 1e300, float("nan"), float("inf")),
    *("", "x" * 500, [], [0], [1, "a"], ["a"], [[0]], [-1], [1 << 40], {}, {"kind": "yarn"}),
]
FAMILIES = [name for name in REGISTRY if name != OWN_FORMAT]


def config_of(family: str) -> ModelConfig:
    """Of the family's case, read from the keys that transformers has for it."""
    case = case_of(family)
    assert case is not None
    return read_config(keys_of(case), Path("config.json"))[1]


def keys_of(case: Case) -> dict[str, Any]:
    """A config.json as the library writes it."""
    sizes = copy.deepcopy(COMMON | dict(case.sizes))
    config = getattr(transformers, f"{case.classes}Config")(**sizes)
    keys: dict[str, Any] = json.loads(config.to_json_string())
    return keys


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_survives_its_manifest(family: str) -> None:
    config = config_of(family)
    assert read_model_config(json.loads(json.dumps(config.to_dict()))) == config


# What else may be named: the size that it does not go with.
RELATED = {
    "dense_width": "dense_layers",
    **dict.fromkeys(("rotary_dim", "plain_width", "turning_width", "latent"), "head_dim"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_that_cannot_be_is_refused_by_its_name(family: str) -> None:
    """Or it can be, and then the family can say all that follows from it."""
    data = config_of(family).to_dict()
    for name, value in itertools.product(data["own"], HOSTILE):
        refusal = refusal_of(data | {"own": data["own"] | {name: value}})
        assert refusal is None or name in refusal or RELATED.get(name, name) in refusal, (value, refusal)
        assert refusal is None or len(refusal) < 300


def refusal_of(data: Mapping[str, Any]) -> str | None:
    try:
        config = read_model_config(data)
    except ConfigError as error:
        return str(error)
    found = family_named(config.family)
    assert found.shared_shapes(config)
    assert found.cache_spec(config).n_layers == config.n_layers
    assert found.num_params(config) > 0
    return None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_of_a_folder_that_cannot_be_is_refused_in_one_line(family: str) -> None:
    """By its own name, or that of a size that it does not go with."""
    case = case_of(family)
    assert case is not None
    data = keys_of(case)
    for name, value in itertools.product(data, HOSTILE):
        refusal = refusal_of_folder(data | {name: value})
        assert refusal is None or re.fullmatch(r"config\.json: .{1,300}", refusal), (name, value, refusal)


def refusal_of_folder(data: Mapping[str, Any]) -> str | None:
    try:
        config = read_config(data, Path("config.json"))[1]
    except (ConfigError, CheckpointError) as error:
        return str(error)
    assert family_named(config.family).shared_shapes(config)
    return None
