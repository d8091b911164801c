"""DecoderFamily: everything that follows from a decoder's spec. A family derives from it and gives the spec.

Shapes: D d_model, E experts.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_model.config import FamilyConfig, ModelConfig
from moe_model.decoder.build import DecoderBuilder
from moe_model.decoder.shapes import network_shapes, shared_shapes
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.families.base import Shapes
from moe_model.families.hugging_face import HuggingFaceModel
from moe_model.families.weights import draw, kaiming_bound, num_values
from moe_model.kernels.base import Kernels, Router
from moe_model.layers.dense import SharedModel
from moe_model.layers.dispatch import Expert
from moe_model.layers.expert_ffn import cut_expert
from moe_model.layers.expert_slices import ExpertSlice
from moe_model.layers.router import RouterWeights, Routing, load_balancing_loss_of_all
from moe_model.layers.specs import CacheGroup, CachePart, CacheSpec, key_value_parts
from moe_model.names import WeightForm

_EMBEDDING_STD = 0.02


class DecoderFamily(ABC):
    """As `families.base.Family`."""

    name: str
    architecture: str
    own_config: type[FamilyConfig]
    hugging_face: HuggingFaceModel | None = None

    @abstractmethod
    def spec(self, config: ModelConfig) -> DecoderSpec:
        """Raises ConfigError naming the key of a size or choice that this family cannot have."""

    def check(self, config: ModelConfig) -> None:
        self.spec(config).check(config.n_layers, config.dense_layers)

    def shared_shapes(self, config: ModelConfig) -> Shapes:
        return shared_shapes(config, self.spec(config))

    def expert_shapes(self, config: ModelConfig) -> Shapes:
        return network_shapes(config.d_model, config.d_ff, self.spec(config).expert)

    def float32_names(self, config: ModelConfig) -> frozenset[str]:
        """Corrections: they are as large as hundreds of the differences that they are to make."""
        return frozenset(name for name in self.shared_shapes(config) if name.endswith(".router.correction"))

    def balance(
        self, config: ModelConfig, routings: Sequence[Routing], is_text_T: Tensor | None = None
    ) -> Tensor | None:
        if not self.spec(config).has_balance:
            return None
        return load_balancing_loss_of_all(routings, config.top_k, is_text_T)

    def cache_spec(self, config: ModelConfig) -> CacheSpec:
        attention = self.spec(config).attention
        if isinstance(attention, GroupedAttention):
            windows = attention.windows or (None,) * config.n_layers
            return CacheSpec.by_window(key_value_parts(config.n_kv_heads, config.head_dim), windows)
        latent = CachePart("latent", 1, attention.latent_rank + attention.rotary.dim)
        return CacheSpec((CacheGroup(tuple(range(config.n_layers)), (latent,)),))

    def num_params(self, config: ModelConfig) -> int:
        experts = config.num_expert_modules * num_values(self.expert_shapes(config))
        return num_values(self.shared_shapes(config)) + experts

    def num_active_params_per_token(self, config: ModelConfig) -> int:
        experts = len(config.moe_layers) * config.top_k * num_values(self.expert_shapes(config))
        return num_values(self.shared_shapes(config)) + experts

    def build_shared(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        kernels: Kernels,
        *,
        form: WeightForm = "model",
    ) -> SharedModel:
        return DecoderBuilder(config, self.spec(config), tensors, kernels, form).build()

    def build_router(self, config: ModelConfig, weights: RouterWeights, kernels: Kernels) -> Router:
        rule = self.spec(config).rule
        rule.check(len(weights.weight_ED))
        return kernels.router(rule, weights, config.top_k)

    def build_expert(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        kernels: Kernels,
        *,
        form: WeightForm = "model",
    ) -> Expert:
        return kernels.expert(self.spec(config).expert, tensors, form=form)

    def cut_expert(self, tensors: Mapping[str, Tensor], part: ExpertSlice) -> dict[str, Tensor]:
        return cut_expert(tensors, part)

    def init_shared(self, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
        tensors = draw(self.shared_shapes(config), generator, kaiming_bound)
        shape = config.vocab_size, config.d_model
        return tensors | {"embedding.weight": _EMBEDDING_STD * torch.randn(shape, generator=generator)}

    def init_expert(self, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
        return draw(self.expert_shapes(config), generator, kaiming_bound)
