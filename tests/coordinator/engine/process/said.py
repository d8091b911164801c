"""Any news of requests that an engine could tell in steps."""

from dataclasses import replace
from typing import Any

import msgspec
from hypothesis import strategies as st

from coordinator.engine.messages.output import FinishReason, Output, RequestTimings, Stop
from tests.coordinator.engine.messages.made_messages import values

_TOKENS = st.integers(0, 1 << 20)


def _outputs(index: int) -> st.SearchStrategy[Output]:
    """Mostly one token and nothing else."""
    plain = st.builds(lambda token: Output("", (token,), index=index), _TOKENS)
    return st.one_of(plain, plain, plain, values(Output).map(lambda output: _not_last(output, index)))


def _not_last(output: Output, index: int) -> Output:
    """What any output may have, without what only the last of a sequence has; its counts can be added up."""
    prompt = output.prompt
    if prompt is not None:
        prompt = replace(prompt, num_cached=abs(prompt.num_cached) >> 32)
    return msgspec.structs.replace(
        output,
        request_id="",
        index=index,
        finish_reason=None,
        stop=None,
        failure=None,
        timings=None,
        prompt=prompt,
    )


def _ends(index: int) -> st.SearchStrategy[Output]:
    return st.builds(
        lambda token, reason, stop, timings: Output("", (token,), reason, stop, None, timings, index),
        *(_TOKENS, values(FinishReason), st.none() | values(Stop), st.none() | values(RequestTimings)),
    )


@st.composite
def steps_of(draw: Any, num_requests: int, num_sequences: int) -> list[list[tuple[int, Output]]]:
    """Steps; each has at most one output of each sequence, as (request, output). Each sequence ends."""
    steps: list[list[tuple[int, Output]]] = [[] for _ in range(draw(st.integers(1, 6)))]
    for request in range(num_requests):
        for index in range(num_sequences):
            last = draw(st.integers(0, len(steps) - 1))
            for step in steps[:last]:
                if draw(st.booleans()):
                    step.append((request, draw(_outputs(index))))
            steps[last].append((request, draw(_ends(index))))
    return steps
