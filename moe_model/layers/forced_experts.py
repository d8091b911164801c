"""Experts that rows are made to go to, for measurements: a table says which a row may choose from.

The router's product is computed as ever; its rule then chooses, and weighs, as if there were no other
experts. Shapes: L layers that have experts, P rows of the table, C candidates of a row, T tokens, E experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.layers.router import RowSelection
from moe_model.layers.zipf_choice import draw_rows, zipf_inclusion


@dataclass(frozen=True, slots=True, eq=False)
class ForcedTable:
    """`ids_LPC`, int16: different ones in each row, at least `top_k` of them. `orders`: where in the table a
    layer is, by its number."""

    ids_LPC: Tensor
    orders: dict[int, int]
    num_experts: int
    top_k: int

    def __post_init__(self) -> None:
        assert self.ids_LPC.dtype == torch.int16
        assert self.ids_LPC.is_contiguous()
        assert self.ids_LPC.shape[2] >= self.top_k
        assert 0 <= int(self.ids_LPC.min()) <= int(self.ids_LPC.max()) < self.num_experts

    @property
    def num_rows(self) -> int:
        return self.ids_LPC.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class ForcedRows:
    """For the tokens of a batch: at `rows_T`, int64, of the table is what they may choose from."""

    table: ForcedTable
    rows_T: Tensor

    def selection(self, layer: int) -> RowSelection:
        """For a router that is called by itself. A selection of all rows alike."""
        table, rows_T = self.table, self.rows_T
        ids_TC = table.ids_LPC[table.orders[layer]].to(rows_T.device)[rows_T].long()
        allowed_TE = torch.zeros(len(rows_T), table.num_experts, dtype=torch.bool, device=rows_T.device)
        allowed_TE.scatter_(1, ids_TC, True)
        every_T = torch.arange(len(rows_T), device=rows_T.device)
        return RowSelection(allowed_TE, torch.full_like(rows_T, table.top_k), ((table.top_k, every_T),))


# Rows of a table that is drawn, a power of two.
NUM_DRAWN_ROWS = 4096


def zipf_table(
    moe_layers: tuple[int, ...], num_experts: int, top_k: int, exponent: float, seed: int, num_candidates: int
) -> ForcedTable:
    """Candidates by Zipf's law: as many as a token gets, so that all are chosen, or more."""
    ids_LPC = torch.stack(
        [
            torch.from_numpy(
                draw_rows(
                    zipf_inclusion(num_experts, num_candidates, exponent, layer, seed),
                    *(NUM_DRAWN_ROWS, layer, seed),
                ).astype("int16")
            )
            for layer in moe_layers
        ]
    )
    orders = {layer: order for order, layer in enumerate(moe_layers)}
    return ForcedTable(ids_LPC, orders, num_experts, top_k)
