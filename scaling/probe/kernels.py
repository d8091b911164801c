"""Rates of products, by the product's own kernels, with weights that come from memory and not from a cache.

Shapes: R rows, I inputs, O outputs, E experts of a layer, K chosen of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.router import Routing
from moe_model.layers.specs import ExpertSpec
from moe_model.machine import last_cache_bytes, memory_bytes
from moe_model.names import WeightForm
from scaling.costs.forms import weight_bytes
from scaling.machines import ProductKind, ProductRate
from scaling.probe.timing import seconds_each

Say = Callable[[str], None]
_GATED = ExpertSpec(None, is_gated=True, activation="silu", has_biases=False)
_NUM_EXPERTS = 8
_MANY_ROWS = 64
_MEMORY_SHARE = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. `linears`: (outputs, inputs). `experts`: (width, hidden width). `one_thread`: at
    which rows the rates of a single thread are measured as well, of the middle size. `cold_bytes`: matrices
    of one measurement together, at least, and `cold_caches` times the last cache: of what is read in turns a
    cache keeps its own part."""

    forms: tuple[str, ...]
    rows: tuple[int, ...]
    linears: tuple[tuple[int, int], ...]
    experts: tuple[tuple[int, int], ...]
    one_thread: tuple[int, ...]
    budget_s: float
    cold_bytes: int
    cold_caches: int = 16

    @property
    def all_bytes(self) -> int:
        """Of the matrices of one measurement here; not more than some of the memory."""
        wanted = max(self.cold_bytes, self.cold_caches * last_cache_bytes())
        return min(wanted, memory_bytes() // _MEMORY_SHARE)


WHOLE = Plan(
    forms=("float32", "bfloat16", "int8"),
    rows=(1, 2, 4, 8, 16, 32, 64, 128, 512),
    linears=((256, 256), (768, 512), (2048, 1024), (6144, 2048)),
    experts=((256, 128), (512, 512), (1024, 1408), (2048, 2048)),
    one_thread=(1, 8, 64, 512),
    budget_s=0.12,
    cold_bytes=256 << 20,
)
QUICK = Plan(
    forms=("float32", "bfloat16", "int8"),
    rows=(1, 4, 16, 64, 256),
    linears=((256, 256), (2048, 1024)),
    experts=((256, 128), (512, 512), (1024, 1408)),
    one_thread=(1, 64),
    budget_s=0.03,
    cold_bytes=128 << 20,
)
ALL_FORMS = ("float32", "bfloat16", "int8", "q8", "q4")


def measure_rates(plan: Plan, num_threads: int, say: Say) -> tuple[ProductRate, ...]:
    """Of all of `num_threads`, and a few of one thread."""
    found: list[ProductRate] = []
    with torch.inference_mode():
        for form in plan.forms:
            say(f"products in {form}")
            found += _of_form(plan, form, num_threads, plan.rows)
        if num_threads > 1:
            say("products of one thread")
            linears, experts = plan.linears[-2:-1], plan.experts[-2:-1]
            middle = replace(plan, forms=("bfloat16",), linears=linears, experts=experts)
            found += _of_form(middle, "bfloat16", 1, plan.one_thread)
    return tuple(found)


def expert_call_seconds(num_threads: int, plan: Plan) -> float:
    """What a call of a layer's experts takes beside its experts: a call of one, less an eighth of one of
    eight."""
    with torch.inference_mode():
        kernels = choose_kernels("native", "cpu", num_threads)
        calls = _experts(kernels, "bfloat16", (256, 128), plan.all_bytes)
        one, eight = (seconds_each(calls(1, number), plan.budget_s) for number in (1, _NUM_EXPERTS))
        return max(0.0, one - eight / _NUM_EXPERTS - _expert_entry_seconds(plan.budget_s))


def _of_form(plan: Plan, form: str, num_threads: int, rows: Sequence[int]) -> Iterator[ProductRate]:
    kernels = choose_kernels("native", "cpu", num_threads)
    threads = 0 if num_threads > 1 else 1
    linear_entry, expert_entry = _linear_entry_seconds(plan.budget_s), _expert_entry_seconds(plan.budget_s)
    kinds: tuple[ProductKind, ...] = ("linear", "exact") if form == "bfloat16" else ("linear",)
    for num_out, num_in in plan.linears:
        for kind in kinds:
            calls = _linears(kernels, form, (num_out, num_in), plan.all_bytes, is_exact=kind == "exact")
            for num_rows in rows:
                seconds = seconds_each(calls(num_rows), plan.budget_s) - linear_entry
                yield _rate(kind, form, num_rows, num_out * num_in, seconds, threads)
    for sizes in plan.experts:
        experts = _experts(kernels, form, sizes, plan.all_bytes)
        for num_rows in rows:
            # Many rows of few experts already take longer than a clock needs.
            number = _NUM_EXPERTS if num_rows < _MANY_ROWS else 2
            seconds = seconds_each(experts(num_rows, number), plan.budget_s) - expert_entry
            yield _rate("expert", form, num_rows, 3 * sizes[0] * sizes[1], seconds / number, threads)


def _rate(
    kind: ProductKind, form: str, num_rows: int, params: int, seconds: float, threads: int
) -> ProductRate:
    num_bytes = params * weight_bytes(form)
    seconds = max(seconds, 1e-8)
    return ProductRate(
        form,
        num_rows,
        gflops=2e-9 * params * num_rows / seconds,
        gbytes_per_s=1e-9 * num_bytes / seconds,
        kind=kind,
        matrix_kb=num_bytes / 1024,
        threads=threads,
    )


def _given(form: str, weight_OI: Tensor) -> tuple[Tensor, WeightForm]:
    """A matrix as kernels take it, of which they keep `form`."""
    if form in ("float32", "bfloat16"):
        return weight_OI.to(torch.float32 if form == "float32" else torch.bfloat16), "model"
    rounded: dict[str, WeightForm] = {"int8": "int8", "q8": "q8", "q4": "q4"}
    return weight_OI, rounded[form]


def _linears(
    kernels: Kernels, form: str, sizes: tuple[int, int], cold_bytes: int, *, is_exact: bool
) -> Callable[[int], list[Callable[[], Tensor]]]:
    """Calls of as many matrices as no cache holds, by the number of rows."""
    num_out, num_in = sizes
    weight_OI, as_form = _given(form, torch.randn(num_out, num_in) / num_in**0.5)
    number = max(2, round(cold_bytes / (num_out * num_in * weight_bytes(form))))
    linears = [kernels.linear(weight_OI, form=as_form, exact_rows=is_exact) for _ in range(number)]

    def calls(num_rows: int) -> list[Callable[[], Tensor]]:
        x_RI = torch.randn(num_rows, num_in)
        return [partial(linear, x_RI) for linear in linears]

    return calls


def _experts(
    kernels: Kernels, form: str, sizes: tuple[int, int], cold_bytes: int
) -> Callable[[int, int], list[Callable[[], Tensor]]]:
    """Calls of layers' experts, by the rows of each expert and the number of experts that have any."""
    width, hidden = sizes
    num_bytes = 3 * width * hidden * weight_bytes(form) * _NUM_EXPERTS
    num_layers = max(1, round(cold_bytes / num_bytes))
    shapes = {"gate.weight": (hidden, width), "up.weight": (hidden, width), "down.weight": (width, hidden)}
    given = {name: _given(form, torch.randn(shape) / shape[1] ** 0.5) for name, shape in shapes.items()}
    tensors, as_form = {name: tensor for name, (tensor, _) in given.items()}, given["up.weight"][1]
    keys = [(layer, expert) for layer in range(num_layers) for expert in range(_NUM_EXPERTS)]
    bank = kernels.bank({key: kernels.expert(_GATED, tensors, form=as_form) for key in keys})

    def calls(num_rows: int, num_touched: int) -> list[Callable[[], Tensor]]:
        num_tokens = num_rows * num_touched
        x_TD = torch.randn(num_tokens, width)
        ids_TK = (torch.arange(num_tokens) // num_rows).unsqueeze(1)
        routing = Routing(torch.ones(num_tokens, 1), ids_TK, torch.zeros(num_tokens, _NUM_EXPERTS))
        return [partial(bank.run_tokens, layer, x_TD, routing) for layer in range(num_layers)]

    return calls


def _linear_entry_seconds(budget_s: float) -> float:
    """Of a call from Python, which a step's program in C does not have: of a product that is nothing."""
    kernels = choose_kernels("native", "cpu", 1)
    return seconds_each([partial(kernels.linear(torch.randn(16, 32)), torch.randn(1, 32))], budget_s)


def _expert_entry_seconds(budget_s: float) -> float:
    kernels = choose_kernels("native", "cpu", 1)
    shapes = {"gate.weight": (16, 32), "up.weight": (16, 32), "down.weight": (32, 16)}
    expert = kernels.expert(_GATED, {name: torch.randn(shape) for name, shape in shapes.items()})
    routing = Routing(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))
    return seconds_each(
        [partial(kernels.bank({(0, 0): expert}).run_tokens, 0, torch.randn(1, 32), routing)], budget_s
    )
