import json
from pathlib import Path
from typing import Any

import pytest

from moe_model.checkpoint.hugging_face.texts import read_tokenizer
from moe_model.checkpoint.manifest import GenerationDefaults
from moe_model.checkpoint.tokenizer_file import with_token_ids
from moe_model.errors import CheckpointError, TokenizerError
from tests.moe_model.source_files import GOLDEN

PLAIN = GenerationDefaults(0.8, 50, 0.9)


def golden() -> Any:
    return json.loads((GOLDEN / "tokenizer.json").read_bytes())


def test_token_ids_are_read_from_the_vocabulary() -> None:
    tokenizer = read_tokenizer(GOLDEN)
    assert tokenizer == (GOLDEN / "tokenizer.json").read_bytes()
    assert with_token_ids(PLAIN, tokenizer, 320) == GenerationDefaults(
        0.8, 50, 0.9, bos_token_id=2, eos_token_ids=(3,), pad_token_id=0
    )


def test_other_ids_and_tokens_that_are_not_there() -> None:
    data = golden()
    vocab = data["model"]["vocab"]
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] == "<bos>"]
    data["added_tokens"][0]["id"] = vocab["<bos>"] = 319
    for token in ("<eos>", "<pad>"):
        del vocab[token]
    defaults = with_token_ids(PLAIN, json.dumps(data).encode(), 320)
    assert defaults == GenerationDefaults(0.8, 50, 0.9, bos_token_id=319)


def test_a_token_that_the_model_does_not_have() -> None:
    tokenizer = (GOLDEN / "tokenizer.json").read_bytes()
    top = max(golden()["model"]["vocab"].values())
    with_token_ids(PLAIN, tokenizer, top + 1)
    with pytest.raises(TokenizerError, match=f"has id {top}, the model's vocab_size is {top}$"):
        with_token_ids(PLAIN, tokenizer, top)


def test_no_tokenizer_and_bad_ones(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: Is a directory"):
        read_tokenizer(tmp_path)
