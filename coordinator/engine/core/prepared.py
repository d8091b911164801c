"""From a request, which is plain data, to the live objects that its sequences need.

Everything of the vocabulary that an engine needs is given to its Preparer once, not with each request.
"""

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.messages.request import Request
from coordinator.engine.sampling.constraint import Constraint, ConstraintBuilder, Matcher
from coordinator.engine.sampling.stop_text import TextMatcher
from coordinator.engine.sampling.token_mask import TokenMask
from moe_model.errors import ConfigError
from moe_model.text.tokenizer import Tokenizer
from moe_model.text.visible_bytes import VisibleBytes

# More take milliseconds.
MAX_IDS_AT_ONCE = 1 << 12


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the sequences of one request share; None where the request does not ask for it."""

    constraint: Constraint | None = None
    token_mask: TokenMask | None = None
    new_text: Callable[[], TextMatcher] | None = None

    def matcher(self) -> Matcher | None:
        """A new sequence's way through the constraint."""
        return None if self.constraint is None else self.constraint.matcher()

    def text(self) -> TextMatcher | None:
        """What looks for stop sequences in a new sequence's text."""
        return None if self.new_text is None else self.new_text()


# Of a request that asks nothing of the vocabulary.
NOTHING = Prepared()


class Preparer:
    """Prepares requests; thread-safe. `tokenizer` and `constraints` None: the model has no text."""

    def __init__(
        self,
        vocab_size: int,
        tokenizer: Tokenizer | None = None,
        constraints: ConstraintBuilder | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._constraints = constraints

    def at_once(self, request: Request) -> Prepared | None:
        """As `prepare`, but None where it would take long: a constraint has to be built, or the rules name
        very many tokens."""
        if request.token_rules is not None and len(request.token_rules.allowed) > MAX_IDS_AT_ONCE:
            return None
        if request.constraint is None:
            return self._with(request, None)
        constraint = None if self._constraints is None else self._constraints.take(request.constraint)
        return None if constraint is None else self._with(request, constraint)

    def prepare(self, request: Request) -> Prepared:
        """Raises ConstraintError; ConfigError for stop sequences where there is no tokenizer."""
        if request.constraint is None:
            return self._with(request, None)
        if self._constraints is None:
            raise ConstraintError("this model's engine builds no constraints")
        source = request.constraint
        return self._with(request, self._constraints.take(source) or self._constraints.build(source))

    def _with(self, request: Request, constraint: Constraint | None) -> Prepared:
        if request.token_rules is None and request.stop.stop_text is None and constraint is None:
            return NOTHING
        rules = request.token_rules
        mask = None if rules is None else TokenMask(rules, self._vocab_size)
        return Prepared(constraint, mask, self._new_text(request))

    def _new_text(self, request: Request) -> Callable[[], TextMatcher] | None:
        stop = request.stop.stop_text
        if stop is None:
            return None
        if self._tokenizer is None:
            raise ConfigError("stop sequences: this model has no tokenizer")
        visible = VisibleBytes(self._tokenizer, stop.skip_special_tokens)
        return lambda: TextMatcher(stop.sequences, visible)


# For requests that ask nothing of the vocabulary.
NO_VOCABULARY = Preparer(0)
