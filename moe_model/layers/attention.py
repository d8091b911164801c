"""What a layer's attention is, apart from where its keys and values are kept.

Shapes: T tokens, H heads, G key/value heads, d head size.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class AttentionForm:
    """How the rows of a layer attend: softmax(scale · q kᵀ) over what they see, times v.

    `window`: a row sees the last so many tokens, itself included; None: all before it. `sinks_H`, float32: a
    logit of each head that joins the sum below the softmax and has no value, Σ e^z v / (Σ e^z + e^sink); it
    is not scaled. `value_width`: values are the first so many numbers of the keys, and nothing else is kept;
    None: they are kept beside the keys.
    Sources: Child et al., "Generating Long Sequences with Sparse Transformers", 2019 (windows); gpt-oss
    (OpenAI, 2025; sinks); DeepSeek-V2 (2024, section 2.1; values in the keys).
    """

    scale: float
    window: int | None = None
    sinks_H: Tensor | None = None
    value_width: int | None = None

    def __post_init__(self) -> None:
        assert self.window is None or self.window > 0
        assert self.value_width is None or self.value_width > 0


# What a layer keeps of each token, part by part in the order of its cache group: k_TGd and v_TGd, or what the
# family has instead.
Kept = tuple[Tensor, ...]
# (layer, its form, q_THd, kept) -> o_THd, or o_THv where values have another width than keys.
Attend = Callable[[int, AttentionForm, Tensor, Kept], Tensor]
