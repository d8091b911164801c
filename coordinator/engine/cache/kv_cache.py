"""What the layers keep of all sequences' tokens: one slot per token, addressed by block.

Shapes: T tokens, G heads of a part, d width of a head; slot = block * block_size + offset.
"""

import torch
from torch import Tensor

from coordinator.engine.options import DEFAULT_BLOCK_SIZE
from moe_model.errors import ConfigError
from moe_model.kernels.cache_layout import CacheLayoutName, cache_layout
from moe_model.layers.specs import CacheSpec


class KVCache:
    """One tensor per part of the spec: keys and values, or what a family has instead. Slots of block 0 stay
    zero; padding reads them."""

    def __init__(
        self,
        spec: CacheSpec,
        num_blocks: int,
        block_size: int = DEFAULT_BLOCK_SIZE,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        layout: CacheLayoutName,
    ) -> None:
        """`layout` is that of the kernels that will attend. Raises ConfigError where there is no memory."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.layout = cache_layout(layout)
        # Left empty: memory is mapped as blocks are first written, and only written slots are ever read.
        self._layers: dict[int, tuple[Tensor, ...]] = {}
        try:
            for group in spec.groups:
                shapes = [self.layout.shape(num_blocks + 1, block_size, part) for part in group.parts]
                parts = [
                    torch.empty((len(group.layers), *shape), dtype=dtype, device=device) for shape in shapes
                ]
                self._layers |= {
                    layer: tuple(part[place] for part in parts) for place, layer in enumerate(group.layers)
                }
        except RuntimeError:
            num_bytes = (num_blocks + 1) * block_bytes(spec, block_size, dtype)
            raise ConfigError(f"kv cache: {num_bytes >> 20} MiB cannot be had on {device}") from None
        for found in self._layers.values():
            for stored in found:
                stored[0] = 0

    def layer(self, layer: int) -> tuple[Tensor, ...]:
        """The parts of a layer, in the order of the spec and in the layout; their first size is blocks."""
        return self._layers[layer]

    def write(self, layer: int, slots_T: Tensor, *rows_TGd: Tensor) -> None:
        """What each token keeps, part by part in the order of the spec."""
        for stored, rows in zip(self.layer(layer), rows_TGd, strict=True):
            self.layout.write(stored, slots_T, rows)

    def read(self, layer: int, slots_N: Tensor) -> tuple[Tensor, ...]:
        """What the tokens of these slots keep: rows_NGd, part by part in the order of the spec."""
        return tuple(self.layout.read(stored, slots_N) for stored in self.layer(layer))


def block_bytes(spec: CacheSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers and parts."""
    return block_size * spec.values_per_token * dtype.itemsize


def num_blocks_for(
    spec: CacheSpec, max_seq_len: int, block_size: int, dtype: torch.dtype, max_num_seqs: int, max_bytes: int
) -> int:
    """Enough for `max_num_seqs` full contexts, within `max_bytes`; ConfigError if not one block is."""
    per_sequence = -(-max_seq_len // block_size)
    affordable = max_bytes // block_bytes(spec, block_size, dtype)
    if affordable < 1:
        raise ConfigError(f"kv cache: {max_bytes} bytes hold not one block of {block_size} tokens")
    return min(max_num_seqs * per_sequence, affordable)
