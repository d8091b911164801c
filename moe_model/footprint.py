"""How much memory a model's parts take, from its config alone: no file is read.

What a process needs beside is its libraries' (`PROCESS_BYTES`), the coordinator's cache, and a step's rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.kernels.quantise import matrix_bytes
from moe_model.names import WeightForm

# What an interpreter with torch and Ray takes before it has a weight: rounded up from what was seen.
PROCESS_BYTES = 600 << 20


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes: of the shared part, of one expert module, and of what all layers keep of one token."""

    shared_bytes: int
    expert_bytes: int
    num_modules: int
    cache_bytes_per_token: int

    @property
    def experts_bytes(self) -> int:
        """Of all expert modules together."""
        return self.num_modules * self.expert_bytes

    def worker_bytes(self, num_workers: int) -> int:
        """What the largest of so many workers keeps, each expert once and all workers alike."""
        return -(-self.num_modules // num_workers) * self.expert_bytes + PROCESS_BYTES

    def coordinator_bytes(self, cache_tokens: int) -> int:
        """With a cache of so many tokens."""
        return self.shared_bytes + cache_tokens * self.cache_bytes_per_token + PROCESS_BYTES


def footprint(
    config: ModelConfig, dtype: torch.dtype, form: WeightForm = "model", shared_form: WeightForm = "model"
) -> Footprint:
    """Of a model whose weights are of `dtype`; the experts' matrices are in `form`, what else rows are
    multiplied with in `shared_form`."""
    family = family_of(config)
    shared = family.shared_shapes(config)
    # The head's matrix is packed for products, the embedding is read by rows: a tied one is there twice.
    embedding = shared["embedding.weight"]
    again = _num_bytes(embedding, dtype, shared_form) if config.tie_embedding else 0
    # Routers choose in float32; as they came they are kept for experts to come.
    float32_routers = 4 * config.num_expert_modules * config.d_model
    expert = family.expert_shapes(config)
    forms: dict[str, WeightForm] = {name: "model" for name in shared if _is_exact(name)}
    of_shared = sum(_num_bytes(shape, dtype, forms.get(name, shared_form)) for name, shape in shared.items())
    return Footprint(
        of_shared + again + float32_routers,
        sum(_num_bytes(shape, dtype, form) for shape in expert.values()),
        config.num_expert_modules,
        family.cache_spec(config).values_per_token * dtype.itemsize,
    )


def _num_bytes(shape: Sequence[int], dtype: torch.dtype, form: WeightForm) -> int:
    return matrix_bytes(shape, dtype, form) if len(shape) == 2 else prod(shape) * dtype.itemsize


def _is_exact(name: str) -> bool:
    """Whether a tensor of the shared part stays as it is: what is looked up, routers, matrices of heads."""
    return name == "embedding.weight" or ".router." in name or ".kv_up." in name
