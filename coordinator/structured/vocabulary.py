"""A model's vocabulary as the library sees it: without its special tokens, or with those that are marks."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from coordinator.structured.library import make_tokenizer, special
from coordinator.structured.matcher import MaskRows
from coordinator.structured.probe import Probe
from coordinator.tools.thoughts import MARKS
from moe_model.text.tokenizer import Tokenizer


class Builds:
    """One way to see the vocabulary: what grammars are built over, and tried out with."""

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int], seconds: float) -> None:
        self.rows = MaskRows(tokens, ends)
        self.tokenizer = make_tokenizer(tokens)
        self.probe = Probe(tokens, seconds)


class Vocabulary:
    """`texts`: of each id; `marks`: special tokens by their texts; `thoughts`: tokens that begin one."""

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, ends: Sequence[int], compile_seconds: float
    ) -> None:
        self.texts = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self._ends, self._seconds = ends, compile_seconds
        never = {token_id for token_id in range(vocab_size) if tokenizer.is_special(token_id)} | set(ends)
        self._plain = [b"" if token_id in never else text for token_id, text in enumerate(self.texts)]
        self.marks: Mapping[str, int] = {
            text: token_id
            for token_id in sorted(never - set(ends))
            if (text := self.texts[token_id].decode(errors="replace").strip())
        }
        begins = {marks.begin.encode(): marks.begin for marks in MARKS}
        self.thoughts = {begins[text]: i for i, text in enumerate(self.texts) if text in begins}

    @cached_property
    def plain(self) -> Builds:
        """For what callers write: no special token is ever allowed."""
        return Builds(self._plain, self._ends, self._seconds)

    @cached_property
    def marked(self) -> Builds:
        """For grammars of ours, which name special tokens by their ids."""
        tokens = list(self._plain)
        for text, token_id in self.marks.items():
            tokens[token_id] = special(text.encode())
        return Builds(tokens, self._ends, self._seconds)

    def close(self) -> None:
        """Ends what was started."""
        for name in ("plain", "marked"):
            if name in self.__dict__:
                self.__dict__[name].probe.close()
