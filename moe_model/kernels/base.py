"""The seam between the model's mathematics and what computes it.

Shapes: T tokens, R rows, I inputs, O outputs, P (row, expert) pairs, D d_model, E experts, K experts per
token; N sequences, B blocks of the longest, S slots, H heads, G key/value heads, d head size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moe_model.kernels.cache_layout import CacheLayoutName
from moe_model.layers.attention import AttentionForm, Kept
from moe_model.layers.dispatch import Expert, ExpertKey
from moe_model.layers.router import RouterWeights, Routing, RowSelection
from moe_model.layers.router_rules import RouterRule
from moe_model.layers.specs import Activation, ExpertSpec, NormSpec, RotarySpec
from moe_model.names import WeightForm

Segments = Sequence[tuple[int, int]]


class Norm(Protocol):
    """Each row by itself: [R, D] -> [R, D]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class HeadNorm(Protocol):
    """A norm of each head by itself."""

    def norm_heads(self, x_THd: Tensor) -> None:
        """Changes x_THd itself. Rows may lie apart, a row's heads not."""


class Linear(Protocol):
    """activation(norm(x) Wᵀ + b) + residual; which of these there are was said when it was made."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns [R, O] for x [R, I]."""


class HeadLinear(Protocol):
    """A matrix of each head: [T, H, I] -> [T, H, O]."""

    def __call__(self, x_THI: Tensor) -> Tensor:
        """Rows, and the heads of a row, may lie apart; the values of a head not."""


class Rotary(Protocol):
    """Rotary positions: turns the heads of each row by its position."""

    def __call__(self, x_THd: Tensor, positions_T: Tensor) -> Tensor:
        """Returns the turned heads; x_THd itself may be turned. Rows may lie apart, a row's heads not."""


class RowGate(Protocol):
    """y · sigmoid(w x), row by row."""

    def __call__(self, y_TD: Tensor, x_TD: Tensor) -> Tensor:
        """y_TD itself may be changed."""


class Router(Protocol):
    """Which experts each row goes to."""

    def __call__(self, x_TD: Tensor, selection: RowSelection | None = None) -> Routing: ...


class ExpertBank(Protocol):
    """Expert modules in this process, run many at a time. A bank never changes: to exchange modules, its
    owner asks it for another bank and uses that one from then on.

    Each layer has the modules of some slots, in an order. Pair p is of row `row_index_P[p]`, or of row p
    where there is no index; `segments` are (slot, number of pairs), in the order of the pairs.
    """

    @property
    def in_c(self) -> object | None:
        """As ExpertBackend has it."""

    def run_pairs(self, layer: int, x_RD: Tensor, row_index_P: Tensor | None, segments: Segments) -> Tensor:
        """What each expert said: y_PD, float32."""

    def run_rows(
        self, layer: int, x_RD: Tensor, row_index_P: Tensor | None, segments: Segments, weights_P: Tensor
    ) -> Tensor:
        """y_RD, float32: per row, what its experts said, weighted and added in the order of the pairs."""

    def run_tokens(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """y_TD in x's dtype: per token, what its experts said, weighted and added in the order of k.

        The routing's expert ids are places in the layer's order, whatever the slots; all E must be here.
        Where there are more, they are slices: the first ones of all E, then all second ones, and so on; what
        the first ones say is added up, then that of the second ones is added to it.
        """

    def with_layer(self, layer: int, slots: Sequence[int], new: Mapping[int, Expert]) -> "ExpertBank":
        """Another bank, whose `layer` has just the modules of `slots`, in that order: those of `new`, and for
        the rest this bank's own. This one stays as it is; nothing that both have is packed anew."""


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """What each token writes and sees: it is written to `slots_T`, and sees the first `lengths_T` tokens,
    itself the last, of its sequence, whose blocks are a row of `block_table_NB`. The cache is in `layout`.

    One is for all layers of a step: types and sizes are checked here, once.
    """

    slots_T: Tensor
    sequences_T: Tensor
    lengths_T: Tensor
    block_table_NB: Tensor
    longest: int
    layout: CacheLayoutName

    def __post_init__(self) -> None:
        rows = self.slots_T, self.sequences_T, self.lengths_T
        assert [x.dtype for x in rows] == [torch.int64, torch.int32, torch.int32]
        assert all(x.shape == self.slots_T.shape and x.is_contiguous() for x in rows)
        assert self.block_table_NB.dtype == torch.int32
        assert self.block_table_NB.is_contiguous()


class PagedAttention(Protocol):
    """Writes what each token keeps to its slot, then attends over the token's context; o_THd."""

    def __call__(
        self, form: AttentionForm, q_THd: Tensor, kept: Kept, stored: tuple[Tensor, ...], contexts: Contexts
    ) -> Tensor:
        """Raises ConfigError for a cache in a layout that these kernels do not read."""


class Kernels(Protocol):
    """Makes the parts of a model from their weights. What it makes is used by one thread at a time."""

    @property
    def name(self) -> str: ...

    @property
    def attend_paged(self) -> PagedAttention | None:
        """None: attention is the caller's."""

    @property
    def cache_layout(self) -> CacheLayoutName:
        """The layout of the cache that attention here is fast, or possible, over."""

    @property
    def keeps_stored(self) -> bool:
        """Whether experts may be in a `StoredForm`, as `stored_matrix.py` has them."""

    def hidden_dtype(self, weights: torch.dtype) -> torch.dtype:
        """The dtype of the rows between the parts."""

    def norm(self, spec: NormSpec, weight_D: Tensor, bias_D: Tensor | None = None) -> Norm:
        """RMSNorm has no bias."""

    def head_norm(self, spec: NormSpec, weight_D: Tensor) -> HeadNorm:
        """Of heads of D values."""

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
        """`form` rounds the weights. Kernels that multiply blocks round rows to blocks of 8 bits too; some
        round them to bfloat16 where weights are, and `exact_rows` asks those not to, which takes longer. With
        tiles it would take too long, and they are rounded all the same."""

    def head_linear(self, weight_HOI: Tensor, *, exact_rows: bool = False) -> HeadLinear:
        """y_tho = Σ_i W_hoi x_thi; `exact_rows` as `linear` has it."""

    def rotary(self, spec: RotarySpec) -> Rotary:
        """One is enough for all layers."""

    def router(self, rule: RouterRule, weights: RouterWeights, top_k: int) -> Router:
        """The rule over the logits of the weights, both in float32."""

    def row_gate(self, weight_1D: Tensor) -> RowGate:
        """Of the rows that `weight_1D` is multiplied with."""

    def expert(
        self, spec: ExpertSpec, tensors: Mapping[str, Tensor], *, form: WeightForm = "model"
    ) -> Expert:
        """One module from tensors of canonical names, for banks of these kernels; `form` rounds
        its matrices, or is the one that they are stored in."""

    def bank(self, experts: Mapping[ExpertKey, Expert]) -> ExpertBank:
        """Modules by layer and slot; each layer's are in the order of the mapping."""
