"""Outputs -> events: the grammar, the text, and that a joined stream is the unary response."""

from collections.abc import Sequence

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.api.requests.event_join import join
from coordinator.api.requests.events import EventWriter
from coordinator.api.requests.plain_delta import plain_event
from coordinator.api.validation.request import resolve
from coordinator.engine.messages.output import FinishReason, Output
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.fakes import EOS, TIMINGS, last, served_model, tiny_tokenizer, tokens
from tests.coordinator.api.grammar import check_grammar

EMOJI = "naïve 東京 🙂👩‍👩‍👧 café"


def written(
    outputs: Sequence[Output], request: str = "", *, has_tokenizer: bool = True
) -> list[pb.GenerateStreamResponse]:
    message = text_format.Parse("token_ids { ids: [5, 6] } " + request, pb.GenerateRequest())
    model = served_model() if has_tokenizer else served_model(tokenizer=None)
    writer = EventWriter(resolve(message, model, "id", 0.0), model.tokenizer, plain_event)
    events = writer.prompt()
    for output in outputs:
        assert not writer.done
        events += writer.events(output)
    assert writer.done
    check_grammar(events)
    return events


def deltas(events: Sequence[pb.GenerateStreamResponse]) -> list[pb.SequenceDelta]:
    return [event.delta for event in events if event.HasField("delta")]


def test_prompt_info() -> None:
    info = written([last(40)], "sampling { seed: 9 }")[0].prompt
    assert (info.request_id, info.model, info.prompt_tokens, info.seed) == ("id", "tiny", 2, 9)
    assert not written([last(40)], "sampling { temperature: 0 }")[0].prompt.HasField("seed")


def test_usage_and_timings() -> None:
    summary = written([tokens(40), tokens(41, 42), last(43)])[-1].summary
    assert (summary.usage.prompt_tokens, summary.usage.completion_tokens) == (2, 4)
    assert summary.timings.queue_time.ToTimedelta().total_seconds() == TIMINGS.queue_time
    assert summary.timings.time_to_first_token.ToTimedelta().total_seconds() == TIMINGS.time_to_first_token
    assert summary.timings.total_time.ToTimedelta().total_seconds() == TIMINGS.total_time


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        (FinishReason.LENGTH, pb.FINISH_REASON_LENGTH),
        (FinishReason.STOP, pb.FINISH_REASON_STOP),
        (FinishReason.TIME_LIMIT, pb.FINISH_REASON_TIME_LIMIT),
        (FinishReason.ABORT, pb.FINISH_REASON_ABORTED),
    ],
)
def test_finish_reasons(reason: FinishReason, value: int) -> None:
    assert written([last(reason=reason)])[-2].finished.finish_reason == value


def test_token_ids_come_only_when_asked_for() -> None:
    outputs = [tokens(40), last(41, 42)]
    assert not join(written(outputs)).outputs[0].token_ids
    assert [delta.num_tokens for delta in deltas(written(outputs))] == [1, 2]
    asked = written(outputs, "response { return_token_ids: true }")
    assert [list(delta.token_ids) for delta in deltas(asked)] == [[40], [41, 42]]


def test_text_can_be_declined() -> None:
    assert join(written([last(40)])).outputs[0].text
    assert not join(written([last(40)], "response { return_text: false }")).outputs[0].text


def test_without_a_tokenizer_there_is_no_text() -> None:
    (output,) = join(written([last(40)], has_tokenizer=False)).outputs
    assert output.text == ""


@pytest.mark.parametrize(
    ("request_text", "stop", "match"),
    [
        ("", EOS, pb.StopMatch(eos_token_id=EOS)),
        ("stopping { stop_token_ids: 41 }", 41, pb.StopMatch(stop_token_id=41)),
        ("stopping { stop_token_ids: 3 }", EOS, pb.StopMatch(eos_token_id=EOS)),
        ("stopping { stop_token_ids: 3 ignore_eos: true }", EOS, pb.StopMatch(stop_token_id=EOS)),
    ],
)
def test_the_token_stopped_at_is_counted_but_is_no_text(
    request_text: str, stop: int, match: pb.StopMatch
) -> None:
    asked = request_text + " response { return_token_ids: true }"
    response = join(written([tokens(40), last(41, stop, reason=FinishReason.STOP, stop=stop)], asked))
    (output,) = response.outputs
    assert list(output.token_ids) == [40, 41, stop]
    assert response.usage.completion_tokens == 3
    assert output.text == tiny_tokenizer().decode([40, 41])
    assert output.stop_match == match


def test_a_token_that_did_not_stop_is_text() -> None:
    (output,) = join(written([last(40, 41)], "stopping { min_tokens: 3 stop_token_ids: 41 }")).outputs
    assert output.text == tiny_tokenizer().decode([40, 41])
    assert not output.HasField("stop_match")


def test_characters_are_never_split() -> None:
    ids = tiny_tokenizer().encode(EMOJI, add_bos=False)
    assert len(ids) > len(EMOJI), "the emoji must span several tokens for this test to mean anything"
    events = written([*(tokens(token_id) for token_id in ids), last()])
    assert all("\ufffd" not in delta.text for delta in deltas(events))
    assert join(events).outputs[0].text == EMOJI


def test_a_character_cut_off_by_the_end_shows_as_one_replacement() -> None:
    ids = tiny_tokenizer().encode("a🙂", add_bos=False)[:-1]
    assert join(written([*(tokens(token_id) for token_id in ids), last()])).outputs[0].text == "a\ufffd"


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 319), max_size=4), max_size=12))
def test_how_outputs_are_cut_changes_nothing(chunks: list[list[int]]) -> None:
    """A reader that lags gets merged outputs: text and ids must not depend on it."""
    ids = [token_id for chunk in chunks for token_id in chunk]
    asked = "response { return_token_ids: true } sampling { seed: 1 }"
    cut = written([*(tokens(*chunk) for chunk in chunks), last()], asked)
    whole = written([last(*ids)], asked)
    assert join(cut) == join(whole)
    assert join(whole).outputs[0].text == tiny_tokenizer().decode(ids)
