"""One request over gRPC, and its history."""

import asyncio
import time
from collections.abc import AsyncIterable, Callable

from chaos.history import Stream
from chaos.scenario import LoadSpec
from expertmesh import AsyncClient, ClientError, Delta, Event, Finished, GenerateOptions, Started, Summary

Count = Callable[[int], None]


def request(spec: LoadSpec, number: int) -> tuple[str, GenerateOptions]:
    """The prompt and the options of one of the different requests."""
    prompt = spec.prompts[number % len(spec.prompts)].replace("{number}", str(number))
    options = GenerateOptions(
        max_tokens=spec.tokens, ignore_eos=True, return_token_ids=True, return_text=False
    )
    if spec.sampling == "greedy" or (spec.sampling == "mixed" and number % 2 == 1):
        options["temperature"] = 0.0
    else:
        options["temperature"] = spec.temperature
        options["seed"] = spec.seed + number
    return prompt, options


async def send(client: AsyncClient, spec: LoadSpec, stream: Stream, count: Count) -> None:
    """Sends a stream's request and records what comes, the error as well. `count` is told of new tokens."""
    prompt, options = request(spec, stream.request)
    await record(client.stream(prompt, **options), stream, count)


async def record(events: AsyncIterable[Event], stream: Stream, count: Count) -> None:
    """A cancellation is recorded and goes on."""
    num_said = 0
    try:
        async for event in events:
            now = time.monotonic()
            if isinstance(event, Delta):
                for offset, token_id in enumerate(event.token_ids):
                    stream.token(num_said + offset, token_id, now)
                num_said += event.num_tokens
                count(len(event.token_ids))
            elif isinstance(event, Started):
                stream.admitted = now
            elif isinstance(event, Finished):
                stream.finish()
            elif isinstance(event, Summary):
                stream.end(now, num_tokens=event.usage.completion_tokens)
    except ClientError as error:
        stream.end(time.monotonic(), error.code, error.reason, error.message)
    except asyncio.CancelledError:
        stream.was_cancelled = True
        raise
