"""Which holder computes which rows of one layer. Pure, and on the path of every step."""

from collections.abc import Mapping, Sequence

# (slot or column, rows)
Segments = list[tuple[int, int]]

# Of fewer rows a piece takes about as long as a larger one: its expert's weights are read in any case.
LEAST_ROWS = 64


def assign(
    holders: Sequence[tuple[int, ...]],
    counts: Sequence[int],
    costs: Mapping[int, float],
    fixed_rows: float = 0.0,
) -> tuple[dict[int, Segments], list[int]]:
    """Gives every column that has rows, whole, to one holder; says which columns have rows and no holder.

    `holders` and `counts` are by column; `costs[rank]` is what one row costs that worker, relative to the
    others, and a rank without a cost is not used; that a column has any rows costs as much as `fixed_rows` of
    them, since its expert's weights are read. Columns without a choice come first, then the largest, each
    to the worker that would be done with it first; of equals to the lower rank. Ranks are sorted, and so are
    the segments of each.

    Whole, because the shape of a matrix product may decide its rounding: a split column would not equal the
    same column computed in one place. Where it does not, `pieces` have been cut before.
    """
    chosen: dict[int, int] = {}
    choices: list[tuple[int, int, Sequence[int]]] = []
    lost: list[int] = []
    for column, rows in enumerate(counts):
        if rows:
            ranks: Sequence[int] = holders[column]
            if len(ranks) > 1:
                ranks = [rank for rank in ranks if rank in costs]
            if len(ranks) > 1:
                choices.append((-rows, column, ranks))
            elif ranks and ranks[0] in costs:
                chosen[column] = ranks[0]
            else:
                lost.append(column)
    if choices:
        choices.sort()
        chosen = _choose(choices, chosen, counts, costs, fixed_rows)
    segments: dict[int, Segments] = {rank: [] for rank in sorted(set(chosen.values()))}
    for column, rank in chosen.items():
        segments[rank].append((column, counts[column]))
    return segments, lost


def pieces(
    holders: Sequence[tuple[int, ...]], counts: Sequence[int], costs: Mapping[int, float]
) -> list[list[int]] | None:
    """How many rows the pieces of each column have: two for each of its holders, where it has several that
    are used and rows enough. None where every column stays whole."""
    cut: list[list[int]] = []
    for ranks, rows in zip(holders, counts, strict=True):
        num = 1
        if rows >= 2 * LEAST_ROWS and (num_usable := sum(rank in costs for rank in ranks)) > 1:
            num = min(2 * num_usable, rows // LEAST_ROWS)
        cut.append([rows * (n + 1) // num - rows * n // num for n in range(num)])
    return cut if any(len(parts) > 1 for parts in cut) else None


def _choose(
    choices: Sequence[tuple[int, int, Sequence[int]]],
    forced: Mapping[int, int],
    counts: Sequence[int],
    costs: Mapping[int, float],
    fixed_rows: float,
) -> dict[int, int]:
    """column -> rank, by column, of the forced ones and of the choices, which come largest first."""
    spent = dict.fromkeys(costs, 0.0)
    for column, rank in forced.items():
        spent[rank] += (counts[column] + fixed_rows) * costs[rank]
    chosen = dict(forced)
    for negative, column, ranks in choices:
        best, least = -1, 0.0
        for rank in ranks:
            done = spent[rank] + (fixed_rows - negative) * costs[rank]
            if best < 0 or done < least or (done == least and rank < best):
                best, least = rank, done
        chosen[column] = best
        spent[best] = least
    return dict(sorted(chosen.items()))
