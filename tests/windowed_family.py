"""A family that only tests have: each of its layers sees whole contexts, the last 5 tokens, or the last 7.

Windows are shorter than prompts, and no multiple of a block: what they reach begins inside of blocks.
"""

from dataclasses import dataclass, replace

from moe_model.config import FamilyConfig, ModelConfig
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.families.base import Family
from moe_model.families.mixtral.config import MixtralConfig
from moe_model.families.mixtral.family import Mixtral

NAME = "windowed"


@dataclass(frozen=True, slots=True)
class WindowedConfig(MixtralConfig):
    """`windows` by layer, 0: none."""

    windows: tuple[int, ...] = ()


class Windowed(Mixtral):
    """As Mixtral, but for the windows."""

    name = NAME
    architecture = "WindowedForTests"
    own_config = WindowedConfig

    def spec(self, config: ModelConfig) -> DecoderSpec:
        spec = super().spec(config)
        assert isinstance(spec.attention, GroupedAttention)
        windows = tuple(window or None for window in _own(config.own).windows)
        return replace(spec, attention=replace(spec.attention, windows=windows))


def _own(own: FamilyConfig) -> WindowedConfig:
    assert isinstance(own, WindowedConfig)
    return own


FAMILY: Family = Windowed()


def windowed(*windows: int, max_seq_len: int = 24) -> ModelConfig:
    """A small model with these windows, one layer each."""
    return ModelConfig(
        family=NAME,
        d_model=16,
        n_heads=4,
        n_kv_heads=2,
        head_dim=6,
        n_layers=len(windows),
        d_ff=24,
        n_experts=4,
        top_k=2,
        vocab_size=50,
        max_seq_len=max_seq_len,
        tie_embedding=False,
        own=WindowedConfig(windows=windows),
    )


# Layers that see everything beside windows of two sizes, and layers that all have a window.
MIXED, ALL_WINDOWED = windowed(5, 0, 7), windowed(5, 7)
