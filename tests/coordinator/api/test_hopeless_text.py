"""A text that cannot fit, whatever its tokens are, is refused before anybody looks for them."""

import pytest
import tokenizers

from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.validation.request import resolve
from expertmesh.v1 import generation_pb2 as pb
from moe_model.text.tokenizer import Tokenizer
from tests.coordinator.api.fakes import BOS, EOS, TOKENIZER_FILE, generate_request, served_model

# The context of 32 leaves room for 31 tokens, of which the longest has 17 bytes.
MOST = 31 * 17


class Counting(Tokenizer):
    """Remembers how much it was asked to encode; takes any text for one token."""

    num_chars = 0

    def encode(self, text: str, *, add_bos: bool = True, add_eos: bool = False) -> list[int]:
        self.num_chars += len(text)
        return [40]


def counting_model() -> tuple[ServedModel, Counting]:
    tokenizer = Counting(tokenizers.Tokenizer.from_file(str(TOKENIZER_FILE)), [BOS], EOS)
    return served_model(tokenizer=tokenizer, max_output_tokens=8), tokenizer


def resolve_text(num_chars: int, options: str, model: ServedModel) -> None:
    message: pb.GenerateRequest = generate_request(options, "x" * num_chars)
    resolve(message, model, "id", 0.0)


@pytest.mark.parametrize("options", ["", "stopping { max_tokens: 1 }"])
def test_one_past_the_edge_is_not_encoded(options: str) -> None:
    model, tokenizer = counting_model()
    resolve_text(MOST, options, model)
    assert tokenizer.num_chars == MOST
    with pytest.raises(ApiError, match="at least 32 tokens are more than 31") as raised:
        resolve_text(MOST + 1, options, model)
    assert raised.value.reason is Reason.CONTEXT_LENGTH_EXCEEDED
    assert [violation.field for violation in raised.value.violations] == ["prompt.text"]
    assert tokenizer.num_chars == MOST


@pytest.mark.parametrize(
    "options", ["stopping { context_overflow: CONTEXT_OVERFLOW_SLIDE }", "truncate_prompt_tokens: 5"]
)
def test_what_may_be_longer_than_the_context_is_encoded(options: str) -> None:
    model, tokenizer = counting_model()
    resolve_text(10 * MOST, options, model)
    assert tokenizer.num_chars == 10 * MOST
