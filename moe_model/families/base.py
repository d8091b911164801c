"""What a model family must say about itself. One small folder per family, and one row in the registry."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from moe_model.config import FamilyConfig, ModelConfig
from moe_model.families.hugging_face import HuggingFaceModel
from moe_model.kernels.base import Kernels, Router
from moe_model.layers.dense import SharedModel
from moe_model.layers.dispatch import Expert
from moe_model.layers.expert_slices import ExpertSlice
from moe_model.layers.router import RouterWeights, Routing
from moe_model.layers.specs import CacheSpec
from moe_model.names import WeightForm

Shapes = dict[str, tuple[int, ...]]


class Family(Protocol):
    """Norms, positions, attention shape, experts, router rule and tensor names of one architecture."""

    @property
    def name(self) -> str:
        """The `family` of a ModelConfig."""

    @property
    def architecture(self) -> str:
        """The class name its own authors use."""

    @property
    def own_config(self) -> type[FamilyConfig]:
        """The type of a config's `own`."""

    @property
    def hugging_face(self) -> HuggingFaceModel | None:
        """How its Hugging Face folders are read; None where there are none."""

    def check(self, config: ModelConfig) -> None:
        """Raises ConfigError naming the key of a size or choice that this family cannot have."""

    def shared_shapes(self, config: ModelConfig) -> Shapes:
        """Names and shapes of the shared part: embedding, attention, norms, routers, head, and the
        feed-forward networks that every token goes through."""

    def expert_shapes(self, config: ModelConfig) -> Shapes:
        """Names and shapes of one expert module, that is one expert of one layer."""

    def float32_names(self, config: ModelConfig) -> frozenset[str]:
        """Tensors of the shared part that stay float32 whatever the dtype of the rest."""

    def balance(
        self, config: ModelConfig, routings: Sequence[Routing], is_text_T: Tensor | None = None
    ) -> Tensor | None:
        """The load-balancing loss of a forward pass, a scalar, as its authors define it; `routings` are of
        the layers with experts, `is_text_T` is false for padding. None where they define none."""

    def cache_spec(self, config: ModelConfig) -> CacheSpec:
        """What each layer keeps of each token."""

    def num_params(self, config: ModelConfig) -> int:
        """Parameters of the whole model as its authors count them."""

    def num_active_params_per_token(self, config: ModelConfig) -> int:
        """Parameters that one token meets, as its authors count them."""

    def build_shared(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        kernels: Kernels,
        *,
        form: WeightForm = "model",
    ) -> SharedModel:
        """The shared part over the given weights, in their dtype and on their device; `form` rounds what rows
        are multiplied with, but for routers and the matrices of single heads."""

    def build_router(self, config: ModelConfig, weights: RouterWeights, kernels: Kernels) -> Router:
        """A layer's router over any number of experts: they may be exchanged, added and removed. Raises
        ConfigError for a number that its rule cannot have."""

    def build_expert(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        kernels: Kernels,
        *,
        form: WeightForm = "model",
    ) -> Expert:
        """One expert module over the given weights; `form` rounds its matrices."""

    def cut_expert(self, tensors: Mapping[str, Tensor], part: ExpertSlice) -> dict[str, Tensor]:
        """A slice of an expert as the weights of an expert, with fewer hidden units, in memory of their
        own."""

    def init_shared(self, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """Random float32 weights of the shared part."""

    def init_expert(self, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """Random float32 weights of one expert module."""
