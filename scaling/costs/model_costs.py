"""Costs of a machine that was probed: its table of products, and what a step takes beside them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from scaling.costs.forms import cache_value_bytes, weight_bytes
from scaling.costs.roofline import RooflineCosts
from scaling.costs.table import ProductTable
from scaling.machines import Machine, Overheads, ProductKind, ProductRate
from scaling.shape import Product, Shape

# Where a form was not measured, another one's time of as many weights; the first that there is.
_INSTEAD: Mapping[str, tuple[str, ...]] = {
    "q8": ("int8", "bfloat16", "float32"),
    "q4": ("q8", "int8", "bfloat16", "float32"),
    "mxfp4": ("q4", "q8", "int8", "bfloat16", "float32"),
    "fp8": ("int8", "bfloat16", "float32"),
    "int8": ("q8", "bfloat16", "float32"),
    "bfloat16": ("float32",),
    "float32": ("bfloat16",),
}
_KINDS: Mapping[ProductKind, tuple[ProductKind, ...]] = {
    "linear": ("linear", "exact", "expert"),
    "exact": ("exact", "linear", "expert"),
    "expert": ("expert", "linear", "exact"),
}


class ModelCosts(Struct, frozen=True):
    """NodeCosts of one model on one machine. `cached_share`: of its weights, those that the last cache still
    has when they are read again; `factor`: of products in a step."""

    shape: Shape
    form: str
    shared_form: str
    threads: float
    cores: float
    overheads: Overheads
    bound: RooflineCosts
    cached_share: float
    factor: float
    rates: dict[tuple[str, str, int], ProductTable]

    @classmethod
    def of(
        cls,
        machine: Machine,
        shape: Shape,
        *,
        form: str,
        threads: float | None = None,
        shared_form: str | None = None,
    ) -> "ModelCosts":
        """`form`: of the experts' matrices; `shared_form`: of the others, None: the same. `threads` None: as
        many as the machine has cores. Raises ConfigError for a form that there is not, ValueError for a
        machine without rates."""
        if not machine.rates:
            raise ValueError(f"machine {machine.name} has no rates")
        best = msgspec.structs.replace(
            machine,
            gflops=max([machine.gflops, *(rate.gflops for rate in machine.rates)]),
            gbytes_per_s=max([machine.gbytes_per_s, *(rate.gbytes_per_s for rate in machine.rates)]),
            overheads=Overheads(),
        )
        bound = RooflineCosts.of(best, shape, form=form, threads=threads, shared_form=shared_form)
        found = machine.overheads
        share = cached_share(machine, shape, form, bound.shared_form)
        factor = (1 - share) * found.kernels + share * found.cached
        grouped: dict[tuple[str, str, int], list[ProductRate]] = {}
        for rate in machine.rates:
            grouped.setdefault((rate.kind, rate.form, rate.threads), []).append(rate)
        return cls(
            *(shape, form, bound.shared_form, bound.threads, machine.cores, found, bound, share, factor),
            {key: ProductTable(rates) for key, rates in grouped.items()},
        )

    def step(self, num_rows: int, num_drawn: int) -> float:
        found = self.overheads
        drawn = 1e-9 * found.draw_ns * num_drawn * self.shape.vocab_size
        return 1e-6 * (found.step_us + found.row_us * num_rows) + drawn

    def front(self, num_tokens: int) -> float:
        found = self.overheads
        return 1e-6 * (found.publish_us + found.token_us * num_tokens) if num_tokens else 0.0

    def shared_layer(self, layer: int, num_rows: int, positions: int, read: float) -> float:
        if num_rows <= 0:
            return 0.0
        found = self.overheads
        beside = 1e-6 * found.layer_us + 1e-9 * found.value_ns * num_rows * self.shape.d_model
        products = sum(self.product(each, num_rows) for each in self._products(layer))
        return beside + self.factor * products + self.attention(positions, read)

    def product(self, product: Product, num_rows: int) -> float:
        """Of one product of the shared part, taken alone."""
        form = "float32" if product.kind == "router" else self.shared_form
        kinds: dict[str, ProductKind] = {"exact": "exact", "network": "expert"}
        return self._seconds(kinds.get(product.kind, "linear"), form, num_rows, product.params)

    def attention(self, positions: int, read: float) -> float:
        """Of one layer, where the rows together see so many positions, and read so many."""
        values = positions * self.shape.attention_values
        seconds = 1e-9 * self.overheads.attention_value_ns * values
        return max(seconds, self.bound.attention(positions, read))

    def head(self, num_rows: int) -> float:
        """Of rows that a token is drawn of."""
        return self.factor * self._seconds("linear", self.shared_form, num_rows, self.shape.head_params)

    def experts(self, rows_E: Sequence[int]) -> float:
        touched = Counter(rows for rows in rows_E if rows > 0)
        if not touched:
            return 0.0
        seconds = 1e-6 * self.overheads.experts_us + sum(
            number * self._seconds("expert", self.form, rows, self.shape.expert_params)
            for rows, number in touched.items()
        )
        return max(self.factor * seconds, (1 - self.cached_share) * self.bound.experts(rows_E))

    def call(self, bytes_out: int, bytes_back: int) -> float:
        return 1e-6 * self.overheads.call_us + self._copy(bytes_out, bytes_back)

    def answer(self, bytes_out: int, bytes_back: int) -> float:
        return 1e-6 * self.overheads.worker_us + self._copy(bytes_out, bytes_back)

    def forced(self, num_rows: int) -> float:
        return 1e-6 * self.overheads.forced_us

    def _copy(self, bytes_out: int, bytes_back: int) -> float:
        num_bytes = bytes_out + bytes_back
        return max(0.5e-9 * self.overheads.byte_ns * num_bytes, num_bytes / self.bound.bytes_per_s)

    def _products(self, layer: int) -> Iterable[Product]:
        if self.shape.layer_products:
            return self.shape.layer_products[layer]
        return (Product("linear", rows * columns) for rows, columns in self.shape.layer_matrices[layer])

    def _seconds(self, kind: ProductKind, form: str, num_rows: int, params: int) -> float:
        """With these threads; never less than bandwidth and operations allow."""
        seconds = self._with_all(kind, form, num_rows, params) * self._slowdown(kind, num_rows)
        return max(seconds, self.bound.product(params, num_rows, form))

    def _with_all(self, kind: ProductKind, form: str, num_rows: int, params: int) -> float:
        for instead in (form, *_INSTEAD[form]):
            for other in _KINDS[kind]:
                table = self.rates.get((other, instead, 0)) or self.rates.get((other, instead, 1))
                if table is not None:
                    return table.seconds(num_rows, params * weight_bytes(instead) / 1024)
        raise ValueError("a machine with rates of no kind")

    def _slowdown(self, kind: ProductKind, num_rows: int) -> float:
        """How much longer than with all cores: a part that threads share and a part that they do not, so
        that one thread takes what was measured of it."""
        if self.threads >= self.cores:
            return 1.0
        one, all_cores = self.rates.get((kind, "bfloat16", 1)), self.rates.get((kind, "bfloat16", 0))
        ratio = self.cores
        if one is not None and all_cores is not None:
            ratio = one.seconds(num_rows, one.middle_kb) / all_cores.seconds(num_rows, one.middle_kb)
            ratio = min(max(ratio, 1.0), self.cores)
        if self.threads <= 1:
            return ratio / self.threads
        shared = (ratio - 1) / (1 - 1 / self.cores)
        return 1 + shared * (1 / self.threads - 1 / self.cores)


def cached_share(machine: Machine, shape: Shape, form: str, shared_form: str) -> float:
    """A cache keeps of what is read over and over its own part of all that is read: as many bytes as it has,
    of a model's."""
    read = shape.shared_params * weight_bytes(shared_form)
    read += shape.num_experts * shape.expert_params * weight_bytes(form)
    return min(1.0, 1e6 * machine.cache_mb / read)


def cache_bytes(shape: Shape, shared_form: str) -> float:
    """What is kept of a token in all layers."""
    return shape.cache_values * cache_value_bytes(shared_form)
