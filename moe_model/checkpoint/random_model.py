"""A model of random weights, each drawn when it is read: as large as one likes, of any family."""

import hashlib

import torch
from torch import Tensor

from moe_model.checkpoint.generation_defaults import GenerationDefaults
from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.families.base import Shapes
from moe_model.text.tokenizer_settings import UNSAID, TokenizerSettings

# Of norms about 1, and of biases, sinks and corrections about 0: enough to tell a model that ignores them.
_SPREAD = 0.1


def module_generator(seed: int, kind: str, layer: int = 0, expert: int = 0) -> torch.Generator:
    """Random numbers of one module, which depend on nothing but what it is: modules can come in any order."""
    digest = hashlib.sha256(f"{seed}/{kind}/{layer}/{expert}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class RandomModel:
    """As `exporter.Model`: tensors are drawn when they are read, the same ones each time.

    Matrices keep the size of what goes in, times `scale`, so that logits are finite at any depth and routers
    are decided. No token ends a text.
    """

    generation = GenerationDefaults()

    def __init__(
        self,
        config: ModelConfig,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        scale: float = 1.0,
    ) -> None:
        family = family_of(config)
        self.config, self.dtype = config, dtype
        self._seed, self._scale = seed, scale
        self._shared, self._expert = family.shared_shapes(config), family.expert_shapes(config)
        self._kept = family.float32_names(config)

    def read_shared(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        return self._drawn(self._shared, dtype, "shared")

    def read_expert(self, layer: int, expert: int, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        return self._drawn(self._expert, dtype, f"expert/{layer}/{expert}")

    def read_tokenizer(self) -> bytes | None:
        return None

    def read_tokenizer_settings(self) -> TokenizerSettings:
        return UNSAID

    def _drawn(self, shapes: Shapes, dtype: torch.dtype | None, module: str) -> dict[str, Tensor]:
        """One after the other, each in its dtype at once: in float32 all would be twice as large."""
        found = {}
        for name, shape in shapes.items():
            generator = module_generator(self._seed, f"like/{module}/{name}")
            as_dtype = torch.float32 if name in self._kept else dtype or self.dtype
            found[name] = _draw(name, shape, generator, self._scale).to(as_dtype)
        return found


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator, scale: float) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return noise.mul_(scale / shape[-1] ** 0.5)
    noise *= _SPREAD
    return noise.add_(1) if name.endswith("norm.weight") else noise
