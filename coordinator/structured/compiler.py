"""ConstraintCompiler: what a request asks of its output becomes a Constraint.

The fronts check sources; the engine takes what was built for that, or builds it. Remembers which grammars
were found harmless, and builds them anew for each request: all copies of one build share its states, and the
limit of those, which an output can reach.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.messages.request import ConstraintSource
from coordinator.structured.cache import LruCache
from coordinator.structured.grammars import KINDS, library_grammar
from coordinator.structured.library import build, make_tokenizer
from coordinator.structured.matcher import GrammarConstraint, MaskRows
from coordinator.structured.probe import Probe
from coordinator.structured.ready import ReadyConstraints
from moe_model.errors import BusyError
from moe_model.text.tokenizer import Tokenizer

# Constraints that wait for their requests, which come a moment after the check.
MAX_READY = 256
_POSITION = re.compile(r"^line \d+, column \d+: ")


@dataclass(frozen=True, slots=True)
class CompilerLimits:
    """Of the cache, by number and by bytes; of one compile; of the wait for those of others."""

    cache_entries: int = 1024
    cache_bytes: int = 16 << 20
    compile_seconds: float = 2.0
    wait_seconds: float = 3.0


class ConstraintCompiler:
    """Thread-safe. Owns a helper process from the first new grammar until `close`."""

    kinds: tuple[str, ...] = KINDS

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        limits: CompilerLimits = CompilerLimits(),
    ) -> None:
        ends = [token_id for token_id in eos_token_ids if 0 <= token_id < vocab_size]
        tokens = [
            b"" if tokenizer.is_special(token_id) or token_id in ends else tokenizer.token_bytes(token_id)
            for token_id in range(vocab_size)
        ]
        self._tokenizer = make_tokenizer(tokens)
        self._rows = MaskRows(tokens, ends)
        self._limits = limits
        self._can_end = bool(ends)
        self._known = LruCache[ConstraintSource, str](limits.cache_entries, limits.cache_bytes)
        self._ready = ReadyConstraints[GrammarConstraint](MAX_READY)
        self._turn = threading.Lock()
        self._probe = Probe(tokens, limits.compile_seconds)

    def check(self, source: ConstraintSource) -> None:
        """Takes milliseconds, at worst twice `compile_seconds` and the wait for others' turns: call it where
        waiting is allowed. What it builds on the way waits for `take`. Raises ConstraintError, BusyError and
        NoProcessError.
        """
        self._ready.put(source, self.compile(source))

    def take(self, source: ConstraintSource) -> GrammarConstraint | None:
        """One that `check` has built for the caller's request; None when it was forgotten meanwhile."""
        return self._ready.take(source)

    def build(self, source: ConstraintSource) -> GrammarConstraint:
        """A constraint of the caller's own, of a source that was checked, here or in another process: what is
        harmless there is so here, so it is not tried out first. Raises ConstraintError."""
        grammar = self._known.get(source) or library_grammar(source).text
        return self._built(grammar)

    def compile(self, source: ConstraintSource) -> GrammarConstraint:
        """Checks and builds. Raises as `check`."""
        return self._built(self._known.get(source) or self._check(source))

    def _built(self, grammar: str) -> GrammarConstraint:
        constraint = GrammarConstraint(build(self._tokenizer, grammar), self._rows)
        first = constraint.matcher()
        if first.failure is not None:
            raise ConstraintError(first.failure)
        if first.must_end and not self._can_end:
            raise ConstraintError("allows only an empty output, which this model cannot end")
        return constraint

    def close(self) -> None:
        """Ends the helper process. Compiled constraints stay good."""
        with self._turn:
            self._probe.close()

    def _check(self, source: ConstraintSource) -> str:
        """The library's grammar, once it has been built without harm."""
        grammar = library_grammar(source)
        if not self._turn.acquire(timeout=self._limits.wait_seconds):
            raise BusyError("structured output: too many constraints are being compiled")
        try:
            if self._known.get(source) is None:
                self._probe.check(grammar.text)
                self._known.put(source, grammar.text, 2 * len(grammar.text))
            return grammar.text
        except ConstraintError as error:
            message = str(error) if grammar.is_verbatim else _POSITION.sub("", str(error))
            raise ConstraintError(message) from None
        finally:
            self._turn.release()
