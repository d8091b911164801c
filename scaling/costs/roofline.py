"""Costs from a memory's bandwidth and a processor's rate alone: no machine is quicker.

For machines that were not probed (published figures), and the bound that measured costs are held to.
Williams, Waterman, Patterson: Roofline, an insightful visual performance model, CACM 52 (4), 2009.
"""

from collections.abc import Sequence

from msgspec import Struct

from scaling.costs.forms import cache_value_bytes, weight_bytes
from scaling.machines import Machine
from scaling.shape import Shape


class RooflineCosts(Struct, frozen=True):
    """NodeCosts of one model on one machine. A product takes the time of reading its weights or that of its
    operations, whichever is longer; sending is a copy at the memory's speed; nothing else takes time but what
    `machine.overheads` says. `threads` divide the operations' rate; any number of them may have the whole
    bandwidth."""

    machine: Machine
    shape: Shape
    form: str
    shared_form: str
    threads: float

    @classmethod
    def of(
        cls,
        machine: Machine,
        shape: Shape,
        *,
        form: str,
        threads: float | None = None,
        shared_form: str | None = None,
    ) -> "RooflineCosts":
        """`form`: of the experts' matrices; `shared_form`: of all others, None: the same. `threads` None: as
        many as the machine has cores. Raises ConfigError for a form that there is not."""
        weight_bytes(form), weight_bytes(shared_form or form)
        return cls(machine, shape, form, shared_form or form, machine.cores if threads is None else threads)

    @property
    def bytes_per_s(self) -> float:
        return 1e9 * self.machine.gbytes_per_s

    @property
    def flops(self) -> float:
        """Operations a second of these threads."""
        return 1e9 * self.machine.gflops * min(1.0, self.threads / self.machine.cores)

    def product(self, num_params: float, num_rows: float, form: str) -> float:
        """Of `num_rows` rows with matrices of `num_params` weights."""
        if num_rows <= 0:
            return 0.0
        read = num_params * weight_bytes(form) / self.bytes_per_s
        return max(read, 2 * num_params * num_rows / self.flops)

    def step(self, num_rows: int, num_drawn: int) -> float:
        found = self.machine.overheads
        return 1e-6 * (found.step_us + found.row_us * num_rows)

    def front(self, num_tokens: int) -> float:
        found = self.machine.overheads
        return 1e-6 * (found.publish_us + found.token_us * num_tokens) if num_tokens else 0.0

    def shared_layer(self, layer: int, num_rows: int, positions: int, read: float) -> float:
        if num_rows <= 0:
            return 0.0
        products = self.product(self.shape.layer_params[layer], num_rows, self.shared_form)
        return 1e-6 * self.machine.overheads.layer_us + products + self.attention(positions, read)

    def attention(self, positions: int, read: float) -> float:
        """Reading what is kept of `read` positions, or two operations for each value, whichever is longer."""
        kept = self.shape.cache_values / self.shape.n_layers * cache_value_bytes(self.shared_form)
        return max(kept * read / self.bytes_per_s, 2.0 * self.shape.attention_values * positions / self.flops)

    def head(self, num_rows: int) -> float:
        return self.product(self.shape.head_params, num_rows, self.shared_form)

    def experts(self, rows_E: Sequence[int]) -> float:
        """Those of one call run one after the other, each with all threads."""
        touched = [rows for rows in rows_E if rows > 0]
        params, weight = self.shape.expert_params, weight_bytes(self.form)
        read = len(touched) * params * weight / self.bytes_per_s
        return max(read, 2.0 * params * sum(touched) / self.flops)

    def call(self, bytes_out: int, bytes_back: int) -> float:
        return 1e-6 * self.machine.overheads.call_us + self._copy(bytes_out, bytes_back)

    def answer(self, bytes_out: int, bytes_back: int) -> float:
        return 1e-6 * self.machine.overheads.worker_us + self._copy(bytes_out, bytes_back)

    def forced(self, num_rows: int) -> float:
        return 1e-6 * self.machine.overheads.forced_us

    def _copy(self, bytes_out: int, bytes_back: int) -> float:
        """Half of `byte_ns` at each end; at least each byte read once."""
        num_bytes = bytes_out + bytes_back
        return num_bytes * max(0.5e-9 * self.machine.overheads.byte_ns, 1 / self.bytes_per_s)
