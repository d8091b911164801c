"""ConstraintCompiler: what a request asks of its output becomes a Constraint.

The fronts check sources; the engine takes what was built for that, or builds it. Remembers which grammars
were found harmless, and builds them anew for each request: all copies of one build share its states, and the
limit of those, which an output can reach.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.messages.request import ConstraintSource, FreePart
from coordinator.engine.sampling.constraint import Constraint
from coordinator.structured.cache import LruCache
from coordinator.structured.free_part import FreeConstraint
from coordinator.structured.grammars import KINDS, library_grammar
from coordinator.structured.library import build
from coordinator.structured.matcher import GrammarConstraint
from coordinator.structured.ready import ReadyConstraints
from coordinator.structured.tool_grammar import KIND as TOOLS
from coordinator.structured.vocabulary import Builds, Vocabulary
from moe_model.errors import BusyError
from moe_model.text.tokenizer import Tokenizer

# Constraints that wait for their requests, which come a moment after the check.
MAX_READY = 256
NOT_FREE = FreePart()
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
        self._vocabulary = Vocabulary(tokenizer, vocab_size, ends, limits.compile_seconds)
        self._limits = limits
        self._can_end = bool(ends)
        self._known = LruCache[ConstraintSource, str](limits.cache_entries, limits.cache_bytes)
        self._ready = ReadyConstraints[Constraint](MAX_READY)
        self._turn = threading.Lock()

    def check(self, source: ConstraintSource) -> None:
        """Takes milliseconds, at worst twice `compile_seconds` and the wait for others' turns: call it where
        waiting is allowed. What it builds on the way waits for `take`. Raises ConstraintError, BusyError and
        NoProcessError.
        """
        self._ready.put(source, self.compile(source))

    def take(self, source: ConstraintSource) -> Constraint | None:
        """One that `check` has built for the caller's request; None when it was forgotten meanwhile."""
        return self._ready.take(source)

    def build(self, source: ConstraintSource) -> Constraint:
        """A constraint of the caller's own, of a source that was checked, here or in another process: what is
        harmless there is so here, so it is not tried out first. Raises ConstraintError."""
        held = replace(source, free=NOT_FREE)
        grammar = self._known.get(held) or library_grammar(held, self._vocabulary.marks).text
        return self._with(source.free, self._built(held, grammar))

    def compile(self, source: ConstraintSource) -> Constraint:
        """Checks and builds. Raises as `check`."""
        held = replace(source, free=NOT_FREE)
        return self._with(source.free, self._built(held, self._known.get(held) or self._check(held)))

    def _with(self, free: FreePart, held: GrammarConstraint) -> Constraint:
        if free == NOT_FREE:
            return held
        words = self._vocabulary
        think_id = words.thoughts.get(free.think_begin)
        return FreeConstraint(held, free, words.texts.__getitem__, think_id, words.plain.rows)

    def _builds(self, source: ConstraintSource) -> Builds:
        return self._vocabulary.marked if source.kind == TOOLS else self._vocabulary.plain

    def _built(self, source: ConstraintSource, grammar: str) -> GrammarConstraint:
        builds = self._builds(source)
        constraint = GrammarConstraint(build(builds.tokenizer, grammar), builds.rows)
        first = constraint.matcher()
        if first.failure is not None:
            raise ConstraintError(first.failure)
        if first.must_end and not self._can_end:
            raise ConstraintError("allows only an empty output, which this model cannot end")
        return constraint

    def close(self) -> None:
        """Ends the helper process. Compiled constraints stay good."""
        with self._turn:
            self._vocabulary.close()

    def _check(self, source: ConstraintSource) -> str:
        """The library's grammar, once it has been built without harm."""
        grammar = library_grammar(source, self._vocabulary.marks)
        if not self._turn.acquire(timeout=self._limits.wait_seconds):
            raise BusyError("structured output: too many constraints are being compiled")
        try:
            if self._known.get(source) is None:
                self._builds(source).probe.check(grammar.text)
                self._known.put(source, grammar.text, 2 * len(grammar.text))
            return grammar.text
        except ConstraintError as error:
            message = str(error) if grammar.is_verbatim else _POSITION.sub("", str(error))
            raise ConstraintError(message) from None
        finally:
            self._turn.release()
