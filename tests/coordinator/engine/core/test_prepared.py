"""Requests are plain data: what their sequences need of the vocabulary is made on the engine's side."""

import pytest

from coordinator.engine.core.prepared import MAX_IDS_AT_ONCE, NOTHING, Preparer
from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.messages.output import TextMatch
from coordinator.engine.messages.request import ConstraintSource, Request, StopRules, StopText, TokenRules
from moe_model.errors import ConfigError
from moe_model.sampling.params import SamplingParams
from tests.coordinator.api.fakes import tiny_tokenizer
from tests.coordinator.engine.constraints import WaitingBuilder

REGEX = ConstraintSource("regex", ("a+",))


def request(
    stop_text: StopText | None = None,
    constraint: ConstraintSource | None = None,
    token_rules: TokenRules | None = None,
) -> Request:
    stop = StopRules(8, stop_text=stop_text)
    return Request("r", (1,), SamplingParams(), stop, constraint=constraint, token_rules=token_rules)


def test_most_requests_need_nothing() -> None:
    preparer = Preparer(320)
    assert preparer.at_once(request()) is preparer.prepare(request()) is NOTHING


@pytest.mark.parametrize("skip_special", [True, False])
def test_stop_text_is_matched_over_what_the_caller_sees(skip_special: bool) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("say END", add_bos=False)
    special = next(i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i))
    stops = (b"END", tokenizer.token_bytes(special))
    prepared = Preparer(320, tokenizer).at_once(request(StopText(stops, skip_special)))
    assert prepared is not None
    first, second = prepared.text(), prepared.text()
    assert first is not None
    assert second is not None
    assert first is not second, "each sequence has a text of its own"
    assert (first.push(special) is None) == skip_special
    assert [match for match in map(second.push, ids) if match] == [TextMatch(b"END", 0)]


def test_stop_text_without_a_tokenizer_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no tokenizer"):
        Preparer(320).at_once(request(StopText((b"END",))))


def test_the_sequences_of_a_request_share_its_token_mask() -> None:
    prepared = Preparer(320).at_once(request(token_rules=TokenRules((4,))))
    assert prepared is not None
    assert prepared.token_mask is not None


def test_very_many_ids_are_not_looked_at_at_once() -> None:
    builder = WaitingBuilder()
    builder.ready.append(REGEX)
    preparer = Preparer(1 << 13, tiny_tokenizer(), builder)
    many = request(constraint=REGEX, token_rules=TokenRules(tuple(range(MAX_IDS_AT_ONCE + 1))))
    assert preparer.at_once(many) is None
    prepared = preparer.prepare(many)
    assert prepared.token_mask is not None
    assert prepared.matcher() is not None
    assert not builder.begun.acquire(blocking=False), "what was built is taken"


def test_a_constraint_that_is_not_built_yet_is_not_had_at_once() -> None:
    builder = WaitingBuilder()
    preparer = Preparer(320, tiny_tokenizer(), builder)
    wanted = request(constraint=REGEX, token_rules=TokenRules((4,)))
    assert preparer.at_once(wanted) is None
    builder.go_on.set()
    built = preparer.prepare(wanted)
    assert built.matcher() is not built.matcher()
    assert built.token_mask is not None
    builder.ready.append(REGEX)
    taken = preparer.at_once(wanted)
    assert taken is not None
    assert taken.matcher() is not None
    assert preparer.at_once(wanted) is None, "each is taken once"


def test_without_a_builder_a_constraint_is_refused() -> None:
    with pytest.raises(ConstraintError):
        Preparer(320, tiny_tokenizer()).prepare(request(constraint=REGEX))
