"""Small tokenizers of every kind, made with the `tokenizers` library."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2's: every byte has a token, a few pairs have one of their own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("Ã", "©"), ("ð", "Ł"), ("ðŁ", "Ļ")]
    tokens = [*SPECIAL, *alphabet, *(a + b for a, b in merges)]
    library = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(SPECIAL))
    return library
