"""What the layers keep of all sequences' tokens: one slot per token, addressed by block.

Shapes: T tokens, G heads of a part, d width of a head; slot = block * block_size + offset.
"""

import torch
from torch import Tensor

from coordinator.engine.cache.cache_sizes import CacheSizes, cache_bytes
from moe_model.errors import ConfigError
from moe_model.kernels.cache_layout import CacheLayoutName, cache_layout
from moe_model.layers.specs import CacheSpec


class KVCache:
    """One tensor per group and part of the spec: keys and values, or what a family has instead. Slots of
    block 0 stay zero; padding reads them."""

    def __init__(
        self,
        spec: CacheSpec,
        sizes: CacheSizes,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        layout: CacheLayoutName,
    ) -> None:
        """`layout` is that of the kernels that will attend. Raises ConfigError where there is no memory."""
        self.block_size = sizes.block_size
        self.layout = cache_layout(layout)
        # Left empty: memory is mapped as blocks are first written, and only written slots are ever read.
        self._layers: dict[int, tuple[Tensor, ...]] = {}
        self._groups = {layer: place for place, group in enumerate(spec.groups) for layer in group.layers}
        self.windows = tuple(size.window for size in sizes.groups)
        try:
            for group, size in zip(spec.groups, sizes.groups, strict=True):
                num_blocks = size.num_blocks + 1
                shapes = [self.layout.shape(num_blocks, sizes.block_size, part) for part in group.parts]
                parts = [
                    torch.empty((len(group.layers), *shape), dtype=dtype, device=device) for shape in shapes
                ]
                self._layers |= {
                    layer: tuple(part[place] for part in parts) for place, layer in enumerate(group.layers)
                }
        except RuntimeError:
            num_bytes = cache_bytes(spec, sizes, dtype)
            raise ConfigError(f"kv cache: {num_bytes >> 20} MiB cannot be had on {device}") from None
        for found in self._layers.values():
            for stored in found:
                stored[0] = 0

    def layer(self, layer: int) -> tuple[Tensor, ...]:
        """The parts of a layer, in the order of the spec and in the layout; their first size is blocks."""
        return self._layers[layer]

    def group_of(self, layer: int) -> int:
        """The place of the layer's group in the spec, which is that of its blocks in a sequence's tables."""
        return self._groups[layer]

    def write(self, layer: int, slots_T: Tensor, *rows_TGd: Tensor) -> None:
        """What each token keeps, part by part in the order of the spec."""
        for stored, rows in zip(self.layer(layer), rows_TGd, strict=True):
            self.layout.write(stored, slots_T, rows)

    def read(self, layer: int, slots_N: Tensor) -> tuple[Tensor, ...]:
        """What the tokens of these slots keep: rows_NGd, part by part in the order of the spec."""
        return tuple(self.layout.read(stored, slots_N) for stored in self.layer(layer))
