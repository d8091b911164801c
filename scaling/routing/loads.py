"""How loaded each expert is: shares of a layer's rows, which add up to 1 in each layer that has any."""

from pathlib import Path

from moe_model.layers.zipf_choice import zipf_inclusion
from scaling.routing.trace_file import TraceFile
from scaling.shape import Shape


def loads_of(path: Path) -> list[list[float]]:
    """shares_LE of a recorded trace, by MoE layer. Raises ConfigError, also for a trace without rows."""
    return TraceFile.open(path).shares()


def zipf_loads(shape: Shape, s: float, seed: int) -> list[list[float]]:
    """shares_LE as `--force-routing zipf:S:SEED` routes; an expert has at most 1/K of the rows."""
    return _loads(shape, s, seed, shape.top_k)


def masked_zipf_loads(shape: Shape, s: float, seed: int) -> list[list[float]]:
    """shares_LE of the candidates of `masked-zipf:S:SEED`, as if routers chose evenly among them."""
    return _loads(shape, s, seed, min(2 * shape.top_k, shape.n_experts))


def _loads(shape: Shape, s: float, seed: int, num_chosen: int) -> list[list[float]]:
    return [
        (zipf_inclusion(shape.n_experts, num_chosen, s, layer, seed) / num_chosen).tolist()
        for layer in shape.moe_layers
    ]
