"""Load generators of others, unmodified, against a real server: what they report is what the server counted.

`make test-loads` installs them and runs this.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.cell import Load
from scaling.loads.base import LoadRun, Target
from scaling.loads.measures import measures
from scaling.loads.senders import sender
from tests.scaling.loads.serving import counted, demo_server

pytestmark = [pytest.mark.loads, pytest.mark.timeout(600)]

TOOLS = ("guidellm", "aiperf", "vllm")
NUM, PROMPT, OUTPUT = 12, 24, 16
# What a tokenizer adds to a text, and what decoding and encoding a prompt again may change.
SPECIAL_TOKENS = 4


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with demo_server(tmp_path_factory.mktemp("serve")) as found:
        yield found


def sent(target: Target, tool: str, load: Load, folder: Path) -> tuple[LoadRun, dict[str, float]]:
    """The run, and by how much the server's counters have grown."""
    names = ("prompt_tokens_total", "generation_tokens_total", "request_success_total")
    before = {name: counted(target, name) for name in names}
    begun: list[None] = []
    run = sender(tool).run(target, load, 3, folder, lambda: begun.append(None), 300.0)
    assert len(begun) == 1
    return run, {name: counted(target, name) - before[name] for name in names}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "how", [Load(concurrency=4, num_requests=NUM), Load(rate=20.0, num_requests=NUM)], ids=str
)
def test_a_tool_and_the_server_count_the_same(target: Target, tmp_path: Path, tool: str, how: Load) -> None:
    load = Load(how.concurrency, how.rate, NUM, PROMPT, OUTPUT)
    run, server = sent(target, tool, load, tmp_path)
    found = measures(run)
    assert (found["num_requests"], found["num_failed"]) == (NUM, 0)
    assert server["request_success_total"] == NUM
    assert found["num_tokens"] == server["generation_tokens_total"] == NUM * OUTPUT
    assert abs(found["num_prompt_tokens"] - server["prompt_tokens_total"]) <= SPECIAL_TOKENS * NUM
    assert abs(server["prompt_tokens_total"] - NUM * PROMPT) <= SPECIAL_TOKENS * NUM


@pytest.mark.parametrize("tool", TOOLS)
def test_times_are_in_their_order(target: Target, tmp_path: Path, tool: str) -> None:
    run, _ = sent(target, tool, Load(concurrency=2, num_requests=6, output_tokens=8), tmp_path)
    for request in run.requests:
        assert request.token_s
        times = [0.0, request.due_s, request.sent_s, *request.token_s, request.end_s]
        # Clocks of a wall and of what has passed differ by less.
        assert all(after >= before - 5e-3 for before, after in itertools.pairwise(times))
        running = sum(other.sent_s <= request.sent_s < other.end_s for other in run.requests)
        assert running <= 2
    found = measures(run)
    assert found["first_token_ms"].median > 0
    assert found["per_token_ms"].median > 0
    assert run.load_cpu_s > 0
