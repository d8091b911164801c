"""What the next token of a sequence is drawn from, whichever step it is."""

from dataclasses import dataclass, field, replace

from coordinator.engine.sampling.constraint import Matcher
from coordinator.engine.sampling.token_mask import TokenMask
from moe_model.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """`token_ids` are prompt and output so far, a list that grows; `key` is the sequence's own.

    Made once per sequence, so what does not change is worked out here: `is_penalized`, whether the tokens so
    far matter. `drafted` may stand after the tokens so far; nothing of it is kept.
    """

    key: int
    params: SamplingParams
    sequence_index: int
    token_ids: list[int]
    num_prompt: int
    matcher: Matcher | None
    token_mask: TokenMask | None = None
    drafted: tuple[int, ...] = ()
    is_penalized: bool = field(init=False)
    # The token is that of the largest logit as it is, unless a matcher restricts it.
    _is_greedy: bool = field(init=False)

    def __post_init__(self) -> None:
        p = self.params
        is_changed = self.token_mask is not None or p.is_penalized or bool(p.logit_bias)
        object.__setattr__(self, "is_penalized", p.is_penalized)
        object.__setattr__(self, "_is_greedy", p.temperature == 0 and not is_changed)

    @property
    def is_restricted(self) -> bool:
        """Whether not every token may be drawn."""
        return self.token_mask is not None or (self.matcher is not None and not self.matcher.is_free)

    @property
    def takes_best(self) -> bool:
        """Whether the token is that of the largest logit."""
        return self._is_greedy and (self.matcher is None or self.matcher.is_free)

    @property
    def num_tokens(self) -> int:
        """Before the one to be drawn."""
        return len(self.token_ids) + len(self.drafted)

    @property
    def all_ids(self) -> list[int]:
        return [*self.token_ids, *self.drafted] if self.drafted else self.token_ids

    def after(self, drafted: tuple[int, ...]) -> "SamplingRow":
        """What the token after these would be drawn from, if they came next."""
        return replace(self, drafted=drafted)
