"""What is known of a long prompt is megabytes; it streams to a client that takes what all take by default."""

from dataclasses import replace

from coordinator.engine.messages.output import Output, PromptDetails, TokenLogprobs
from coordinator.engine.messages.request import Request
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.answers import joined
from tests.coordinator.api.fakes import FakeEngine, last, running, served_model
from tests.coordinator.api.grammar import check_grammar

NUM_TOKENS, NUM_TOP = 32_000, 20
DEFAULT_LIMIT = 4 << 20


def details(request: Request) -> list[Output]:
    top = tuple((token_id, -1.5) for token_id in range(NUM_TOP))
    scores = tuple(TokenLogprobs(token_id, -1.5, 1, top) for token_id in request.prompt_ids[1:])
    return [Output("", prompt=PromptDetails(0, scores)), last(40)]


async def test_prompt_logprobs_of_32_thousand_tokens() -> None:
    message = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * NUM_TOKENS))
    message.stopping.max_tokens, message.response.prompt_logprobs = 1, NUM_TOP
    model = served_model(kv_capacity_tokens=1 << 17)
    model = replace(model, config=replace(model.config, max_seq_len=NUM_TOKENS + 1))
    async with running(FakeEngine(play=details), model) as service:
        events = [event async for event in service.stub.GenerateStream(message)]
        check_grammar(events)
        sizes = [event.ByteSize() for event in events]
        assert max(sizes) <= 1 << 20
        assert sum(sizes) > 2 * DEFAULT_LIMIT, "as one message it would not fit"
        logprobs = joined(events).prompt.logprobs
        assert len(logprobs) == NUM_TOKENS
        assert not logprobs[0].HasField("logprob")
        assert all(len(each.top) == NUM_TOP for each in logprobs[1:])
