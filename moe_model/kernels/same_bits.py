"""Which kernels give the same bits as which: the one place that knows it.

An output is the same chain of fused multiply-adds for every width of vectors, and norms and activations have
eight lanes everywhere. Plain C rounds a product before it adds it. Pairs of bfloat16 are multiplied with rows
that are rounded to it, and rounded once for both; tiles add 32 inputs at a time. On ARM, products with FP8
weights are those of plain C.
"""

from dataclasses import dataclass

import torch

from moe_model.names import WeightForm

_ARM = frozenset({"neon", "dotprod", "i8mm"})
_FUSED = frozenset({"avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx"}) | _ARM
# Those that compute weights of this dtype, where they are not kept in fewer bits, in a way of their own.
_OWN = {"avx512bf16": torch.bfloat16, "amx": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class KernelKind:
    """What a process computes experts with. `name`: an instruction set, or torch. Two of the same `bits` give
    the same ones. `available`: the instruction sets that it could be told to use, the best first."""

    name: str
    bits: str
    available: tuple[str, ...] = ()


def bits_of(name: str, dtype: torch.dtype, form: WeightForm) -> str:
    """Equal where experts of this dtype and form have the same bits. Of torch that is only true of the same
    version on the same processor."""
    if name not in _FUSED or (form == "model" and _OWN.get(name) == dtype):
        return name
    return "fused, plain products" if form == "fp8" and name in _ARM else "fused"
