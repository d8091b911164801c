"""What the special tokens of a tokenizer say about generation, where no file of the model does."""

from dataclasses import replace

from moe_model.checkpoint.manifest import GenerationDefaults
from moe_model.text.tokenizer import vocabulary_of


def with_token_ids(defaults: GenerationDefaults, tokenizer: bytes, vocab_size: int) -> GenerationDefaults:
    """Fills in BOS, EOS and PAD. Raises TokenizerError for a token id that the model does not have."""
    vocabulary = vocabulary_of(tokenizer, vocab_size)
    eos = vocabulary.get("<eos>")
    return replace(
        defaults,
        bos_token_id=vocabulary.get("<bos>"),
        eos_token_ids=() if eos is None else (eos,),
        pad_token_id=vocabulary.get("<pad>"),
    )
