"""The model families we can run."""

from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families.base import Family, Shapes
from moe_model.families.modularforge import ModularForge

__all__ = ["Family", "ModularForge", "Shapes", "family_of"]

_FAMILIES: dict[str, Family] = {family.name: family for family in (ModularForge(),)}


def family_of(config: ModelConfig) -> Family:
    """Returns the family a config names. Raises ConfigError for a family we do not know."""
    family = _FAMILIES.get(config.family)
    if family is None:
        raise ConfigError(f"family: unknown {config.family[:80]!r}; known: {', '.join(_FAMILIES)}")
    return family
