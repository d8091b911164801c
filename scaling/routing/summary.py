"""What a routing trace says of load, drift and of experts that are wanted together.

Shapes: L MoE layers, E experts, W windows of tokens, R rows that were looked at.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from scaling.routing.trace_file import TraceFile, count_rows, highest

# Windows that drift is told of, pairs that are named, copies that are tried, tokens that pairs are counted
# in.
MAX_WINDOWS, NUM_PAIRS, COPIES, PAIR_ROWS = 32, 5, (1, 2, 4, 8, 16), 16_384


class Pair(Struct, frozen=True):
    """Experts of a row: `lift` is how many times as often as if chosen apart. `share` is of all rows; between
    layers, of the rows of the first one."""

    layer: int
    first: int
    second: int
    share: float
    lift: float


class LayerLoad(Struct, frozen=True):
    """`layer` is the model's number. `max_over_mean`: the most loaded expert's rows over the mean;
    `with_copies`: the same where so many further copies are held, by their number. `entropy`: in bits,
    `evenness` over that of an even load. `experts_for_half`: the fewest that get half of the rows."""

    layer: int
    num_rows: int
    max_share: float
    max_over_mean: float
    unused: int
    entropy: float
    evenness: float
    experts_for_half: int
    top: tuple[int, ...]
    with_copies: dict[int, float]


class Summary(Struct, frozen=True):
    """`window_tokens`: of a window of `drift`, which is the total variation between a window's shares and
    those of the whole, a layer's mean, in [0, 1]; `drift_by_chance`: what so many rows would show of it if
    nothing drifted. `within`, `between`: the pairs with the largest lifts in a layer, and from one to the
    next."""

    name: str
    model: str
    num_tokens: int
    num_layers: int
    num_experts: int
    top_k: int
    is_cut: bool
    layers: tuple[LayerLoad, ...]
    window_tokens: int
    drift: tuple[float, ...]
    drift_by_chance: float
    within: tuple[Pair, ...]
    between: tuple[Pair, ...]


def summarise(trace: TraceFile) -> Summary:
    """In two passes, and memory that does not grow with the file. Raises ConfigError, not for no rows."""
    windows = Windows(len(trace.header.moe_layers), trace.header.num_experts)
    for ids_TLK in trace.rows():
        windows.add(ids_TLK)
    counts_LE = windows.total()
    layers = trace.header.moe_layers
    drift, chance = windows.drift()
    within, between = _pairs(trace, counts_LE.shape[1]) if windows.num_tokens else ((), ())
    return Summary(
        name=trace.header.name,
        model=trace.header.model,
        num_tokens=windows.num_tokens,
        num_layers=len(layers),
        num_experts=counts_LE.shape[1],
        top_k=trace.header.top_k,
        is_cut=trace.is_cut,
        layers=tuple(layer_load(layer, counts_LE[n]) for n, layer in enumerate(layers)),
        window_tokens=windows.window_tokens,
        drift=drift,
        drift_by_chance=chance,
        within=within,
        between=between,
    )


def layer_load(layer: int, counts_E: np.ndarray) -> LayerLoad:
    total = int(counts_E.sum())
    shares_E = counts_E / max(1, total)
    used_E = shares_E[shares_E > 0]
    entropy = max(0.0, float(-(used_E * np.log2(used_E)).sum()))
    order_E = np.argsort(-counts_E, kind="stable")
    half = int(np.searchsorted(np.cumsum(shares_E[order_E]), 0.5 - 1e-12)) + 1 if total else 0
    even = np.log2(len(counts_E)) if len(counts_E) > 1 else 1.0
    return LayerLoad(
        layer=layer,
        num_rows=total,
        max_share=float(shares_E.max()),
        max_over_mean=float(shares_E.max() * len(shares_E)),
        unused=int((counts_E == 0).sum()),
        entropy=entropy,
        evenness=float(entropy / even),
        experts_for_half=half,
        top=tuple(order_E[:3].tolist()) if total else (),
        with_copies={number: with_copies(counts_E, number) for number in COPIES} if total else {},
    )


def with_copies(counts_E: np.ndarray, num_copies: int) -> float:
    """Most rows of one copy over the mean of all copies, each further one of the expert with the most: rows
    of an expert are shared evenly by its copies."""
    copies_E = np.ones(len(counts_E), dtype=np.int64)
    for _ in range(num_copies):
        copies_E[np.argmax(counts_E / copies_E)] += 1
    return float((counts_E / copies_E).max() / (counts_E.sum() / copies_E.sum()))


class Windows:
    """Counts of successive windows, at most MAX_WINDOWS: where there would be more, each two become one."""

    def __init__(self, num_layers: int, num_experts: int, window_tokens: int = 256) -> None:
        self.window_tokens, self.num_tokens = window_tokens, 0
        self._counts = [np.zeros((num_layers, num_experts), dtype=np.int64)]
        self._in_last = 0

    def add(self, ids_TLK: np.ndarray) -> None:
        """The next tokens."""
        at = 0
        while at < len(ids_TLK):
            if self._in_last == self.window_tokens:
                self._next()
            taken = ids_TLK[at : at + self.window_tokens - self._in_last]
            num_experts = max(self._counts[0].shape[1], 1 + highest(taken))
            if num_experts > self._counts[0].shape[1]:
                missing = num_experts - self._counts[0].shape[1]
                self._counts = [np.pad(each, ((0, 0), (0, missing))) for each in self._counts]
            self._counts[-1] += count_rows(taken, num_experts)
            at += len(taken)
            self._in_last += len(taken)
        self.num_tokens += len(ids_TLK)

    def _next(self) -> None:
        if len(self._counts) == MAX_WINDOWS:
            self._counts = [a + b for a, b in zip(self._counts[::2], self._counts[1::2], strict=True)]
            self.window_tokens *= 2
        self._counts.append(np.zeros_like(self._counts[0]))
        self._in_last = 0

    def total(self) -> np.ndarray:
        """counts_LE."""
        total_LE: np.ndarray = np.sum(self._counts, axis=0)
        return total_LE

    def drift(self) -> tuple[tuple[float, ...], float]:
        """Of each window, and by chance. The last window counts where it is at least half full."""
        whole_LE = _shares(self.total())
        full = self._counts[:-1] if 2 * self._in_last < self.window_tokens else self._counts
        if len(full) < 2:
            return (), 0.0
        drift = tuple(float(np.abs(_shares(each) - whole_LE).sum(1).mean() / 2) for each in full)
        rows_L = np.maximum(1.0, np.mean([each.sum(1) for each in full], axis=0))
        # The mean absolute deviation of a share that is drawn so often, nearly normal, halved as it is above.
        deviation_LE = np.sqrt(whole_LE * (1 - whole_LE) / rows_L[:, None] * (2 / np.pi))
        return drift, float(deviation_LE.sum(1).mean() / 2)


def _shares(counts_LE: np.ndarray) -> np.ndarray:
    shares_LE: np.ndarray = counts_LE / counts_LE.sum(1, keepdims=True).clip(min=1)
    return shares_LE


def _pairs(trace: TraceFile, num_experts: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Of some of the rows."""
    ids_RLK = trace.some_rows(PAIR_ROWS)
    layers, within, between = trace.header.moe_layers, [], []
    chosen_before: np.ndarray | None = None
    for n, layer in enumerate(layers):
        chosen_RE = np.zeros((len(ids_RLK), num_experts + 1), dtype=np.float32)
        np.put_along_axis(chosen_RE, ids_RLK[:, n].astype(np.int64), 1.0, axis=1)
        chosen_RE = chosen_RE[:, :num_experts]
        within += _best(layer, chosen_RE, chosen_RE, is_one_layer=True)
        if chosen_before is not None:
            between += _best(layers[n - 1], chosen_before, chosen_RE, is_one_layer=False)
        chosen_before = chosen_RE
    return _first(within), _first(between)


def _best(layer: int, first_RE: np.ndarray, second_RE: np.ndarray, *, is_one_layer: bool) -> list[Pair]:
    """The pairs of one layer, or from one to the next, with the largest lifts among those seen often
    enough."""
    together_EE = first_RE.T @ second_RE
    if is_one_layer:
        together_EE = np.triu(together_EE, 1)
    apart_EE = np.outer(first_RE.sum(0), second_RE.sum(0)) / max(1, len(first_RE))
    lift_EE = np.where(together_EE >= _OFTEN, together_EE / np.maximum(apart_EE, 1e-9), 0.0)
    found = []
    for at in np.argsort(-lift_EE, axis=None)[:NUM_PAIRS]:
        first, second = np.unravel_index(at, lift_EE.shape)
        if lift_EE[first, second] > 1.05:
            all_rows = len(first_RE) if is_one_layer else first_RE[:, first].sum()
            share = float(together_EE[first, second] / all_rows)
            found.append(Pair(layer, int(first), int(second), share, float(lift_EE[first, second])))
    return found


# Rarer pairs say nothing.
_OFTEN = 8


def _first(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    return tuple(sorted(pairs, key=lambda pair: -pair.lift)[:NUM_PAIRS])
