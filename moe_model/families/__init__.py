"""The model families that can be run: one row for each, loaded when a model of it is met. Needs no torch."""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_model.config import FamilyConfig, ModelConfig
from moe_model.errors import ConfigError

if TYPE_CHECKING:
    from moe_model.families.base import Family

# The `family` of a ModelConfig, and the module whose FAMILY it is.
REGISTRY: dict[str, str] = {
    "modularforge": "moe_model.families.modularforge.family",
    "mixtral": "moe_model.families.mixtral.family",
    "qwen3_moe": "moe_model.families.qwen3_moe.family",
    "qwen2_moe": "moe_model.families.qwen2_moe.family",
    "olmoe": "moe_model.families.olmoe.family",
    "flex_olmo": "moe_model.families.flex_olmo.family",
    "granitemoe": "moe_model.families.granitemoe.family",
    "gpt_oss": "moe_model.families.gpt_oss.family",
    "ernie4_5_moe": "moe_model.families.ernie4_5_moe.family",
    "minimax_m2": "moe_model.families.minimax_m2.family",
    "deepseek_v2": "moe_model.families.deepseek_v2.family",
    "deepseek_v3": "moe_model.families.deepseek_v3.family",
    "glm4_moe": "moe_model.families.glm4_moe.family",
}
# The `model_type` of a Hugging Face config.json, and the family that reads such a folder.
HUGGING_FACE: dict[str, str] = {
    "mixtral": "mixtral",
    "qwen3_moe": "qwen3_moe",
    "qwen2_moe": "qwen2_moe",
    "olmoe": "olmoe",
    "flex_olmo": "flex_olmo",
    "granitemoe": "granitemoe",
    "granitemoeshared": "granitemoe",
    "gpt_oss": "gpt_oss",
    "ernie4_5_moe": "ernie4_5_moe",
    "minimax_m2": "minimax_m2",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "glm4_moe": "glm4_moe",
}


def family_of(config: ModelConfig) -> "Family":
    """Returns the family a config names. Raises ConfigError for a family we do not know."""
    return family_named(config.family)


def family_named(name: str) -> "Family":
    """Raises ConfigError for a family we do not know."""
    if name not in REGISTRY:
        raise ConfigError(f"family: unknown {name[:80]!r}; known: {', '.join(REGISTRY)}")
    family: Family = importlib.import_module(REGISTRY[name]).FAMILY
    return family


def read_model_config(data: object, where: str = "model config") -> ModelConfig:
    """A config from parsed JSON, read and checked by its family. Raises ConfigError naming the key."""
    name = data.get("family") if isinstance(data, Mapping) else None
    try:
        family = family_named(name) if isinstance(name, str) else None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    own = FamilyConfig if family is None else family.own_config
    config = ModelConfig.from_dict(data, where=where, own=own)
    assert family is not None, "a config without a family's name is refused"
    try:
        family.check(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return config
