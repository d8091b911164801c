"""Kernels of our own C, for CPUs. Cannot be imported where the package was installed without a C compiler.

Shapes: as in moe_model/kernels/base.py.
"""

import logging
from collections.abc import Mapping
from functools import cache, partial

import torch
from torch import Tensor

from moe_model.kernels.base import (
    ExpertBank,
    HeadLinear,
    HeadNorm,
    Linear,
    Norm,
    PagedAttention,
    Rotary,
    Router,
    RowGate,
)
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.experts import NativeBank, NativeExpert, NativeTable
from moe_model.kernels.native.head_linear import NativeHeadLinear
from moe_model.kernels.native.linear import NativeLinear, NativeMatrix, NativeNorm
from moe_model.kernels.native.paged import CACHE_LAYOUT, attend_paged
from moe_model.kernels.native.plan import InexpressibleError
from moe_model.kernels.native.program import NativeProgram
from moe_model.kernels.native.rotary import NativeRotary
from moe_model.kernels.native.router import NativeRouter, NativeRowGate, has_code
from moe_model.kernels.native.runtime import Runtime, Scratch
from moe_model.layers.dense import SharedModel
from moe_model.layers.dispatch import Expert, ExpertKey, by_layer
from moe_model.layers.expert_ffn import check_expert
from moe_model.layers.router import RouterWeights, RuledRouter
from moe_model.layers.router_rules import RouterRule
from moe_model.layers.specs import Activation, ExpertSpec, NormSpec, RotarySpec
from moe_model.layers.stored_matrix import StoredMatrix, random_matrix
from moe_model.machine import usable_cores
from moe_model.names import INSTRUCTION_SETS, InstructionSet, WeightForm, stored_form

_log = logging.getLogger(__name__)

# What each of them computes as plain C does, before it is used.
_CHECKED: tuple[tuple[torch.dtype, WeightForm], ...] = (
    (torch.float32, "model"),
    (torch.bfloat16, "model"),
    (torch.float32, "int8"),
    (torch.float32, "q8"),
    (torch.float32, "q4"),
    (torch.float32, "mxfp4"),
    (torch.float32, "fp8"),
)


class NativeKernels:
    """The kernels for one of the processor's instruction sets; None: the best."""

    name = "native"
    cache_layout = CACHE_LAYOUT
    keeps_stored = True

    def __init__(self, instruction_set: str | None = None, num_threads: int | None = None) -> None:
        """`num_threads` None: as many as the process may use cores. Raises ValueError for an instruction set
        that the processor has not, OSError for one that the system does not let the process use."""
        handle = best_that_is_right() if instruction_set is None else _kernels.kernels(instruction_set)
        self.instruction_set = _kernels.name(handle)
        self.num_threads = num_threads or usable_cores().number
        self._runtime = Runtime(handle, Scratch(), self.num_threads)
        self.attend_paged: PagedAttention = partial(attend_paged, self._runtime)

    def hidden_dtype(self, weights: torch.dtype) -> torch.dtype:
        return torch.float32

    def norm(self, spec: NormSpec, weight_D: Tensor, bias_D: Tensor | None = None) -> Norm:
        return NativeNorm(self._runtime, spec, weight_D, bias_D)

    def head_norm(self, spec: NormSpec, weight_D: Tensor) -> HeadNorm:
        return NativeNorm(self._runtime, spec, weight_D, None)

    def linear(
        self,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        activation: Activation = "none",
        norm: Norm | None = None,
        *,
        form: WeightForm = "model",
        exact_rows: bool = False,
    ) -> Linear:
        assert norm is None or isinstance(norm, NativeNorm)
        matrix = NativeMatrix(weight_OI, bias_O, form=form, exact_rows=exact_rows)
        return NativeLinear(self._runtime, matrix, activation, norm)

    def head_linear(self, weight_HOI: Tensor, *, exact_rows: bool = False) -> HeadLinear:
        return NativeHeadLinear(self._runtime, weight_HOI, exact_rows=exact_rows)

    def rotary(self, spec: RotarySpec) -> Rotary:
        return NativeRotary(self._runtime, spec)

    def router(self, rule: RouterRule, weights: RouterWeights, top_k: int) -> Router:
        """A rule that is not in C is applied as it is, to the logits of C."""
        bias_E = None if weights.bias_E is None else weights.bias_E.float()
        gate = NativeMatrix(weights.weight_ED.float(), bias_E)
        if has_code(rule):
            return NativeRouter(self._runtime, gate, rule, top_k, weights.correction_E)
        return RuledRouter(NativeLinear(self._runtime, gate), rule, top_k, weights.correction_E)

    def row_gate(self, weight_1D: Tensor) -> RowGate:
        return NativeRowGate(self._runtime, NativeLinear(self._runtime, NativeMatrix(weight_1D)))

    def expert(
        self, spec: ExpertSpec, tensors: Mapping[str, Tensor], *, form: WeightForm = "model"
    ) -> Expert:
        check_expert(spec, tensors, form)
        return NativeExpert(self._runtime, spec, tensors, form=form)

    def bank(self, experts: Mapping[ExpertKey, Expert]) -> ExpertBank:
        tables = {layer: NativeTable(found) for layer, found in by_layer(experts).items()}
        return NativeBank(self._runtime, tables)

    def program(self, shared: SharedModel) -> NativeProgram | None:
        """All layers in one call; None for a model that has a part which is not in C."""
        try:
            return NativeProgram(self._runtime, shared)
        except InexpressibleError as part:
            _log.info("steps run part by part: %s", part)
            return None


@cache
def instruction_sets() -> tuple[InstructionSet, ...]:
    """Those of this processor, the best first."""
    return tuple(name for name in INSTRUCTION_SETS if _is_here(name))


def _is_here(name: InstructionSet) -> bool:
    try:
        _kernels.kernels(name)
    except ValueError:
        return False
    except OSError as refusal:
        _log.warning("other kernels are used: %s", refusal)
        return False
    return True


def is_right(name: InstructionSet) -> bool:
    """Whether the products of a set that is here agree with plain C: no machine that builds this package has
    them all, and a wrong number is worse than a slow one."""
    handle, plain = _kernels.kernels(name), _kernels.kernels("generic")
    return name == "generic" or (
        all(_agrees(handle, plain, dtype, form) for dtype, form in _CHECKED)
        and _agrees(handle, plain, torch.bfloat16, "model", exact_rows=True)
    )


@cache
def best_that_is_right() -> object:
    for name in instruction_sets():
        if is_right(name):
            return _kernels.kernels(name)
        _log.error("the %s kernels are wrong on this processor and are not used", name)
    raise AssertionError("plain C is right")


def _agrees(
    handle: object, plain: object, dtype: torch.dtype, form: WeightForm, *, exact_rows: bool = False
) -> bool:
    """Of blocks, to the bit. Rows and inputs are groups of whole tiles, and something more."""
    num_rows, num_in, num_out = 87, 576 if form == "mxfp4" else 563, 37
    generator = torch.Generator().manual_seed(0)
    stored = stored_form(form)
    weight_OI: torch.Tensor | StoredMatrix
    if stored is None:
        weight_OI = (10 * torch.randn(num_out, num_in, generator=generator)).to(dtype)
    else:
        weight_OI = random_matrix(stored, num_out, num_in, generator)
    x_RI = torch.randn(num_rows, num_in, generator=generator).bfloat16().float()
    got_RO, expected_RO = (
        NativeLinear(
            Runtime(kernels, Scratch(), 1), NativeMatrix(weight_OI, form=form, exact_rows=exact_rows)
        )(x_RI)
        for kernels in (handle, plain)
    )
    if form in ("q8", "q4", "mxfp4"):
        return torch.equal(got_RO, expected_RO)
    return torch.allclose(got_RO, expected_RO, rtol=1e-4, atol=1e-2)
