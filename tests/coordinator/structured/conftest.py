from collections.abc import Iterator

import pytest

from coordinator.structured.compiler import ConstraintCompiler
from tests.coordinator.structured.walks import DEMO, EOS, TINY, Compiling, load_tokenizer


@pytest.fixture(scope="session", params=[DEMO, TINY], ids=["4096 tokens", "320 tokens"])
def compiling(request: pytest.FixtureRequest) -> Iterator[Compiling]:
    """A compiler over each of our vocabularies; the model has more ids than they do."""
    tokenizer = load_tokenizer(request.param)
    vocab_size = tokenizer.vocab_size + 37
    compiler = ConstraintCompiler(tokenizer, vocab_size, [EOS])
    yield Compiling(tokenizer, compiler, vocab_size)
    compiler.close()
