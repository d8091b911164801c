"""Events of n sequences with everything a request can want: the grammar, the sizes, and the joined answer."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from coordinator.api.requests.event_details import MAX_MESSAGE_BYTES
from coordinator.api.requests.event_join import join
from coordinator.api.requests.events import EventWriter
from coordinator.api.requests.plain_delta import plain_event
from coordinator.engine.messages.output import (
    FinishReason,
    Output,
    PromptDetails,
    RoutedExperts,
    Stop,
    TextMatch,
    TokenLogprobs,
)
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.fakes import TIMINGS, served_model, tiny_tokenizer
from tests.coordinator.api.grammar import check_grammar
from tests.coordinator.api.made_requests import resolved

WANTS = (
    "response { return_token_ids: true logprobs: 1 prompt_logprobs: 0 return_routed_experts: true "
    "return_prompt_token_ids: true } "
)


def scores(*token_ids: int, num_top: int = 1) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(i, -float(i), 1, tuple((i, -1.0) for _ in range(num_top))) for i in token_ids)


def trace(first: int, count: int = 1, num_experts: int = 2) -> tuple[RoutedExperts, ...]:
    ids = np.full((count, 3, num_experts), first % 5, np.uint8)
    return (RoutedExperts(first, ids),)


def output(index: int, position: int, *token_ids: int, last: bool = False) -> Output:
    """Of a prompt of 2 tokens; `position` is that of the first token in the sequence."""
    return Output(
        "",
        token_ids,
        FinishReason.LENGTH if last else None,
        index=index,
        logprobs=scores(*token_ids),
        routed_experts=trace(position, len(token_ids)) if token_ids else (),
        timings=TIMINGS if last else None,
    )


def written(outputs: list[Output], text: str, num_sequences: int) -> list[pb.GenerateStreamResponse]:
    model = served_model(allow_routed_experts=True)
    valid = resolved(f"token_ids {{ ids: [5, 6] }} sampling {{ seed: 1 }} {text}", model)
    request = replace(valid.request, num_sequences=num_sequences)
    writer = EventWriter(replace(valid, request=request), model.tokenizer, plain_event)
    events = writer.prompt()
    for each in outputs:
        events += writer.events(each)
    assert writer.done
    check_grammar(events, num_sequences)
    assert all(event.ByteSize() <= MAX_MESSAGE_BYTES for event in events)
    return events


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[int, list[Output], dict[int, list[int]]]:
    """Sequences of any lengths in any order, cut anyhow; the details of the prompt come with sequence 0."""
    num_sequences = draw(st.integers(1, 4))
    tokens = {i: draw(st.lists(st.integers(4, 319), max_size=6)) for i in range(num_sequences)}
    queues = {
        i: [output(i, 2 + n, token) for n, token in enumerate(ids)] + [output(i, 2 + len(ids), last=True)]
        for i, ids in tokens.items()
    }
    details = PromptDetails(1, scores(6), trace(0, 2))
    queues[0][0] = structs.replace(queues[0][0], prompt=details)
    order: list[Output] = []
    while any(queues.values()):
        index = draw(st.sampled_from([i for i, queue in queues.items() if queue]))
        order.append(queues[index].pop(0))
    return num_sequences, order, tokens


@settings(deadline=None)
@given(
    interleaved(),
    st.sampled_from(["", WANTS, WANTS.replace("response {", "response { min_tokens_per_message: 3")]),
)
def test_any_order_of_any_sequences(
    generated: tuple[int, list[Output], dict[int, list[int]]], text: str
) -> None:
    num_sequences, outputs, tokens = generated
    response = join(written(outputs, text, num_sequences))
    assert response.usage.completion_tokens == sum(map(len, tokens.values()))
    assert response.usage.cached_prompt_tokens == 1
    assert [each.index for each in response.outputs] == list(range(num_sequences))
    for index, ids in tokens.items():
        answer = response.outputs[index]
        assert answer.text == tiny_tokenizer().decode(ids)
        if text:
            assert list(answer.token_ids) == ids
            assert [each.token_id for each in answer.logprobs] == ids
            assert [each.token_bytes for each in answer.logprobs] == [
                tiny_tokenizer().token_bytes(i) for i in ids
            ]
            assert answer.routed_experts.num_tokens == len(ids)
            if ids:
                assert answer.routed_experts.first_position == 2
                assert len(answer.routed_experts.data) == len(ids) * 3 * 2
    if text:
        prompt = response.prompt
        assert list(prompt.token_ids) == [5, 6]
        assert [each.token_id for each in prompt.logprobs] == [5, 6]
        assert not prompt.logprobs[0].HasField("logprob"), "nothing predicts the first token"
        assert (prompt.routed_experts.first_position, prompt.routed_experts.num_tokens) == (0, 2)


def test_long_details_are_cut_into_messages_that_fit() -> None:
    count = 30_000
    details = PromptDetails(0, scores(*[7] * count, num_top=20), trace(0, count, 64))
    outputs = [structs.replace(output(0, 2, 9, last=True), prompt=details)]
    events = written(outputs, WANTS, 1)
    prompts = [event.prompt for event in events if event.HasField("prompt")]
    assert len(prompts) > 10
    response = join(events)
    assert len(response.prompt.logprobs) == 1 + count
    assert response.prompt.routed_experts.num_tokens == count
    assert len(response.prompt.routed_experts.data) == count * 3 * 64


def test_a_long_delta_is_cut_too() -> None:
    found = scores(*[9] * 9000, num_top=20)
    many = Output("", (9,) * 9000, FinishReason.LENGTH, logprobs=found, timings=TIMINGS)
    many = structs.replace(many, prompt=PromptDetails(0, scores(6), trace(0, 2)))
    response = join(written([many], WANTS, 1))
    assert len(response.outputs[0].logprobs) == len(response.outputs[0].token_ids) == 9000


@pytest.mark.parametrize(("include", "text"), [("", "ab"), ("include_stop_in_output: true", "abEND")])
def test_a_stop_sequence_ends_the_text(include: str, text: str) -> None:
    ids = tiny_tokenizer().encode("abEND!", add_bos=False)
    stop = Stop(text=TextMatch(b"END", 1))
    last = Output("", tuple(ids), FinishReason.STOP, stop, timings=TIMINGS)
    (answer,) = join(written([last], f'stopping {{ stop_sequences: "END" {include} }}', 1)).outputs
    assert answer.text == text
    assert answer.stop_match.stop_sequence == "END"


def test_an_end_before_the_prompt_was_computed_still_ends_the_stream() -> None:
    ended = [Output("", finish_reason=FinishReason.ABORT, timings=TIMINGS, index=i) for i in (1, 0)]
    response = join(written(ended, WANTS, 2))
    assert [each.finish_reason for each in response.outputs] == [pb.FINISH_REASON_ABORTED] * 2
