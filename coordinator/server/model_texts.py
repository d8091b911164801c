"""What a model's texts need: its tokenizer, and what compiles constraints over its tokens.

Fronts and engine share them where they are in one process. Part of the composition root, with main.py.
"""

import logging
from dataclasses import dataclass

from coordinator.api.shared.served_model import no_tokenizer
from coordinator.api.text.confined_tokenizer import ConfinedEncoder
from coordinator.engine.core.prepared import Preparer
from coordinator.engine.messages.model_facts import ModelFacts
from coordinator.structured.compiler import ConstraintCompiler
from moe_model.files.strict_json import brief
from moe_model.text.tokenizer import BOS, Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelTexts:
    """None of both for a checkpoint without a tokenizer. Each may own a process from its first use on.

    `unread` is the file of a tokenizer that is there in a form that is not read.
    """

    vocab_size: int
    tokenizer: Tokenizer | None
    constraints: ConstraintCompiler | None
    unread: str

    @classmethod
    def open(cls, facts: ModelFacts) -> "ModelTexts":
        """Raises TokenizerError."""
        data, vocab_size = facts.tokenizer, facts.config.vocab_size
        if data is None:
            unread = facts.settings.unread
            if unread:
                logger.warning("%s", no_tokenizer(unread))
            return cls(vocab_size, None, None, unread)
        tokenizer = _tokenizer(facts, data)
        eos = facts.generation.eos_token_ids
        return cls(vocab_size, tokenizer, ConstraintCompiler(tokenizer, vocab_size, eos), "")

    def preparer(self) -> Preparer:
        """What makes requests ready for an engine of this model."""
        return Preparer(self.vocab_size, self.tokenizer, self.constraints)

    def close(self) -> None:
        """Ends their processes."""
        if self.tokenizer is not None:
            self.tokenizer.close()
        if self.constraints is not None:
            self.constraints.close()


def _tokenizer(facts: ModelFacts, data: bytes) -> Tokenizer:
    """BOS is known by its name where special tokens have names; else, in a checkpoint of ours, by its id."""
    settings, generation = facts.settings, facts.generation
    by_id = settings.adds_bos and not settings.special_tokens
    tokenizer = Tokenizer.from_bytes(
        data,
        generation.bos_token_id if by_id else None,
        next(iter(generation.eos_token_ids), None),
        bos_token=settings.special_tokens.get("bos_token", BOS if by_id else ""),
        adds_bos=settings.adds_bos,
        vocab_size=facts.config.vocab_size,
        confine=ConfinedEncoder,
    )
    if tokenizer.waits:
        logger.info(
            "tokenizer.json: has a step that is not known to be quick; a process with limits takes it"
        )
    for name, text in settings.special_tokens.items():
        if not tokenizer.has_token(text):
            shown = f"tokenizer_config.json: {name} {brief(text)} is no token of tokenizer.json"
            logger.warning("%s: it is taken for plain text, and ends nothing", shown)
    return tokenizer
