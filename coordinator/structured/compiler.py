"""ConstraintCompiler: what a request asks of its output becomes a Constraint.

Remembers which grammars were found harmless, and builds them anew for each request: all copies of one build
share its states, and the limit of those, which an output can reach.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.confined.errors import BusyError
from coordinator.structured.cache import LruCache
from coordinator.structured.errors import ConstraintError
from coordinator.structured.grammars import KINDS, Value, library_grammar
from coordinator.structured.library import build, make_tokenizer
from coordinator.structured.matcher import GrammarConstraint, MaskRows
from coordinator.structured.probe import Probe
from moe_model.text.tokenizer import Tokenizer

# Kind, value, whether JSON is compact.
_Key = tuple[str, str | tuple[str, ...], bool]

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
        self._known = LruCache[_Key, str](limits.cache_entries, limits.cache_bytes)
        self._turn = threading.Lock()
        self._probe = Probe(tokens, limits.compile_seconds)

    def compile(self, kind: str, value: Value, *, compact_json: bool = False) -> GrammarConstraint:
        """A constraint of the caller's own. Takes milliseconds, at worst twice `compile_seconds` and the wait
        for others' turns: call it where waiting is allowed. Raises ConstraintError, BusyError and
        NoProcessError.
        """
        key = (kind, value if isinstance(value, str) else tuple(value), compact_json)
        grammar = self._known.get(key) or self._check(key)
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

    def _check(self, key: _Key) -> str:
        """The library's grammar, once it has been built without harm."""
        kind, value, compact_json = key
        grammar = library_grammar(kind, value, compact_json=compact_json)
        if not self._turn.acquire(timeout=self._limits.wait_seconds):
            raise BusyError("structured output: too many constraints are being compiled")
        try:
            if self._known.get(key) is None:
                self._probe.check(grammar.text)
                self._known.put(key, grammar.text, 2 * len(grammar.text))
            return grammar.text
        except ConstraintError as error:
            message = str(error) if grammar.is_verbatim else _POSITION.sub("", str(error))
            raise ConstraintError(message) from None
        finally:
            self._turn.release()
