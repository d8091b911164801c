"""Experts by Zipf's law, drawn once into a table: the r-th most wanted of a layer gets a share of 1/r^s.

For measurements: what is drawn here takes the place of what a router would choose. All of it follows from the
seed by whole numbers, on every machine. Shapes: E experts, P rows of a table, C experts of a row.
"""

import numpy as np

# Probabilities are whole numbers of this: sums are exact, so that each row gets just as many as it should.
_ONE = 1 << 40
# Orders of the experts that rows are drawn by, which decide who is chosen together.
_NUM_ORDERS = 64
_ORDER, _PLACE, _SHIFT, _ROW = range(4)


def zipf_shares(n_experts: int, exponent: float) -> np.ndarray:
    """By rank, shares_E that add up to 1; alike for exponent 0."""
    weights_E = np.arange(1, n_experts + 1, dtype=np.float64) ** -exponent
    shares_E: np.ndarray = weights_E / weights_E.sum()
    return shares_E


def expert_order(n_experts: int, layer: int, seed: int) -> np.ndarray:
    """The expert of each rank in a layer of this number, order_E."""
    return np.argsort(_numbers(n_experts, seed, layer, _ORDER), kind="stable")


def inclusion(shares_E: np.ndarray, num_chosen: int) -> np.ndarray:
    """How likely each is among the `num_chosen` different ones of a row: chances_E that add up to it.

    In proportion to its share, but at most 1: what a share is above 1/C goes to the others, in proportion.
    """
    chances_E = np.zeros(len(shares_E))
    is_full_E = np.zeros(len(shares_E), dtype=bool)
    while True:
        free = shares_E[~is_full_E].sum()
        left = num_chosen - int(is_full_E.sum())
        if not free > 0:
            # Shares of 0 are chosen where there is nothing else.
            chances_E[~is_full_E] = left / max(1, int((~is_full_E).sum()))
            return chances_E
        chances_E = np.where(is_full_E, 1.0, shares_E * (left / free))
        over_E = (chances_E >= 1) & ~is_full_E
        if not over_E.any():
            return chances_E
        is_full_E |= over_E
        chances_E[is_full_E] = 1.0
        if is_full_E.sum() >= num_chosen:
            return chances_E


def zipf_inclusion(n_experts: int, num_chosen: int, exponent: float, layer: int, seed: int) -> np.ndarray:
    """`inclusion` by expert of one layer."""
    chances_E = np.empty(n_experts)
    chances_E[expert_order(n_experts, layer, seed)] = inclusion(zipf_shares(n_experts, exponent), num_chosen)
    return chances_E


def draw_rows(chances_E: np.ndarray, num_rows: int, layer: int, seed: int) -> np.ndarray:
    """ids_PC, uint16: C different experts in each of `num_rows` rows, a multiple of 64; over all rows each
    expert as often as its chance says, but for a few rows.

    Systematic sampling: experts lie side by side on a line, each as wide as its chance, and points one apart
    are set on it (Madow, "On the theory of systematic sampling, II", 1949). The order on the line is another
    one in each 64th of the rows, in which first points are spread evenly.
    """
    per_order = num_rows // _NUM_ORDERS
    assert per_order * _NUM_ORDERS == num_rows, "rows are for 64 orders"
    widths_E = _whole(chances_E)
    num_chosen = int(widths_E.sum()) // _ONE
    rows = []
    for order in range(_NUM_ORDERS):
        order_E = np.argsort(_numbers(len(chances_E), seed, layer, _PLACE, order), kind="stable")
        ends_E = np.cumsum(widths_E[order_E])
        within_R = _numbers(per_order, seed, layer, _SHIFT, order) >> np.uint64(24)
        first_R = (np.arange(per_order) * _ONE + within_R.astype(np.int64)) // per_order
        points_RC = first_R[:, None] + np.arange(num_chosen) * _ONE
        rows.append(order_E[np.searchsorted(ends_E, points_RC, side="right")])
    shuffled_P = np.argsort(_numbers(num_rows, seed, layer, _ROW), kind="stable")
    ids_PC: np.ndarray = np.concatenate(rows).astype(np.uint16)[shuffled_P]
    return ids_PC


def _whole(chances_E: np.ndarray) -> np.ndarray:
    """Whole numbers of _ONE, at most one each, that add up to the rounded sum."""
    wanted = round(float(chances_E.sum())) * _ONE
    widths_E = np.minimum((chances_E * _ONE).astype(np.int64), _ONE)
    for expert in np.argsort(-widths_E, kind="stable"):
        more = min(wanted - int(widths_E.sum()), _ONE - int(widths_E[expert]))
        widths_E[expert] += more
    return widths_E


def _numbers(count: int, *key: int) -> np.ndarray:
    """uint64 by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014),
    from a state that the key decides."""
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = _mixed(state + np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return _mixed(state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
