"""Slices of experts: fixed blocks of hidden units, each of which may be computed elsewhere. Needs no torch.

    y = Σ_slices Σ_k weight_k · down_s(activation(up_s(norm(x))))

The order of these additions is that of the slices, and within one that of the experts: wherever each is
computed, the sum has the same bits. The biases of `down` are those of the first slice.
"""

from dataclasses import dataclass

from moe_model.errors import ConfigError

MOST_SLICES = 16


@dataclass(frozen=True, slots=True)
class ExpertSlice:
    """One of `num` blocks of an expert's hidden units, all of one size."""

    index: int = 0
    num: int = 1

    def units(self, hidden_width: int) -> slice:
        """Which of so many hidden units are in it."""
        size = hidden_width // self.num
        return slice(self.index * size, (self.index + 1) * size)


WHOLE = ExpertSlice()


def check_slices(hidden_width: int, num_slices: int, block: int = 1) -> None:
    """Raises ConfigError where experts of so many hidden units have no such slices. More than one are whole
    blocks of `block` units."""
    if not 1 <= num_slices <= MOST_SLICES:
        raise ConfigError(f"expert_slices: {num_slices} is not in [1, {MOST_SLICES}]")
    if hidden_width % num_slices:
        raise ConfigError(
            f"expert_slices: {num_slices} slices of {hidden_width} hidden units would not be of one size; "
            "take a number that divides these"
        )
    if num_slices > 1 and hidden_width // num_slices % block:
        raise ConfigError(
            f"expert_slices: {num_slices} slices of {hidden_width} hidden units would cut blocks of {block}, "
            "which the experts are stored in; take fewer slices, or --expert-dtype model"
        )
