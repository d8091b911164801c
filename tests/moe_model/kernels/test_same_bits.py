"""Which instruction sets give experts the same bits: what the table says, and what they compute.

Shapes: R rows, D d_model, F hidden size.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from moe_model.kernels.choice import choose_kernels, kind_of
from moe_model.kernels.same_bits import bits_of
from moe_model.layers.dispatch import Expert
from moe_model.layers.specs import ExpertSpec, NormSpec
from moe_model.layers.stored_matrix import SCALE, random_matrix
from moe_model.names import (
    INSTRUCTION_SETS,
    WEIGHT_FORMS,
    InstructionSet,
    StoredForm,
    WeightForm,
    stored_form,
)
from tests.moe_model.layers.test_expert_ffn import LIMITED, SWIGLU, random_expert
from tests.native import needs_native

SPECS = (
    replace(SWIGLU, norm=NormSpec("rms_norm", 1e-6)),
    replace(LIMITED, has_biases=True),
    ExpertSpec(NormSpec("layer_norm", 1e-5), is_gated=False, activation="gelu", has_biases=True),
)
# Two blocks of sums and a part of one, and odd rests; whole blocks, for forms that a checkpoint has.
D, F, R = 271, 307, 13
STORED_D, STORED_F = 288, 320


def _said(name: InstructionSet, spec: ExpertSpec, dtype: torch.dtype, form: WeightForm) -> list[torch.Tensor]:
    """Each expert's rows, and their weighted sums."""
    kernels = choose_kernels("native", "cpu", 2, name)
    stored, experts = stored_form(form), dict[tuple[int, int], Expert]()
    width, hidden_width = (D, F) if stored is None else (STORED_D, STORED_F)
    for expert in range(2):
        tensors = random_expert(spec, width, hidden_width, expert)
        tensors = {each: found.to(dtype) for each, found in tensors.items()}
        if stored is not None:
            tensors = _kept(tensors, stored)
        experts[0, expert] = kernels.expert(spec, tensors, form=form)
    bank, segments = kernels.bank(experts), ((0, R), (1, R))
    x_RD = torch.randn(R, width, generator=torch.Generator().manual_seed(5))
    index_P = torch.arange(R, dtype=torch.int32).repeat(2)
    weights_P = torch.linspace(0.1, 0.9, 2 * R)
    return [bank.run_pairs(0, x_RD, index_P, segments), bank.run_rows(0, x_RD, index_P, segments, weights_P)]


def _kept(tensors: Mapping[str, torch.Tensor], form: StoredForm) -> dict[str, torch.Tensor]:
    """Other matrices of the same shapes, in their own bytes."""
    found = dict(tensors)
    for name in [name for name, tensor in tensors.items() if tensor.dim() == 2]:
        num_out, num_in = tensors[name].shape
        matrix = random_matrix(form, num_out, num_in, torch.Generator().manual_seed(len(name)))
        found |= {name: matrix.bytes_Ob, name + SCALE: matrix.scale_OB}
    return found


@needs_native
@pytest.mark.parametrize("form", WEIGHT_FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_table_says_what_is_computed(dtype: torch.dtype, form: WeightForm) -> None:
    """Of all instruction sets of this processor: the same bits of all experts where it says so, and others of
    some where not."""
    (available,) = {kind_of(choose_kernels("native", "cpu"), dtype, form).available}
    assert available[-1] == "generic"
    said = {
        name: [tensor for spec in SPECS for tensor in _said(name, spec, dtype, form)]
        for name in INSTRUCTION_SETS
        if name in available
    }
    for one, other in combinations(said, 2):
        is_same = bits_of(one, dtype, form) == bits_of(other, dtype, form)
        assert all(map(torch.equal, said[one], said[other])) == is_same, (one, other)


@pytest.mark.parametrize(
    ("dtype", "form", "apart"),
    [
        (torch.float32, "model", {"generic"}),
        (torch.float32, "q8", {"generic"}),
        (torch.bfloat16, "model", {"generic", "avx512bf16", "amx"}),
        (torch.bfloat16, "int8", {"generic"}),
        (torch.bfloat16, "q4", {"generic"}),
    ],
)
def test_which_are_apart(dtype: torch.dtype, form: WeightForm, apart: set[str]) -> None:
    """Also those that this processor has not."""
    bits = {name: bits_of(name, dtype, form) for name in (*INSTRUCTION_SETS, "torch")}
    assert {name for name, each in bits.items() if each == name} == apart | {"torch"}
    assert len({each for name, each in bits.items() if each != name}) == 1


def test_fp8_on_arm_is_multiplied_as_by_plain_c() -> None:
    bits = {name: bits_of(name, torch.bfloat16, "fp8") for name in INSTRUCTION_SETS}
    assert bits["neon"] == bits["dotprod"] == bits["i8mm"]
    assert bits["neon"] not in (bits["avx2"], bits["generic"])


def test_what_the_table_does_not_know_is_like_nothing_else() -> None:
    assert bits_of("later", torch.float32, "model") == "later"
