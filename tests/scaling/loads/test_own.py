"""Our own client against a real server: what it sends, when, and what it notes of the answers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest

from moe_model.errors import ConfigError
from scaling.cell import Load
from scaling.loads.base import LoadRun, Target
from scaling.loads.measures import measures
from scaling.loads.own import OwnSender
from tests.scaling.loads.serving import counted, demo_server

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with demo_server(tmp_path_factory.mktemp("serve")) as found:
        yield found


@dataclass
class Begun:
    num: int = 0
    files: list[Path] = field(default_factory=list)

    def __call__(self) -> None:
        self.num += 1


def sent(target: Target, load: Load, folder: Path, seed: int = 0, timeout: float = 120.0) -> LoadRun:
    begun = Begun()
    run = OwnSender().run(target, load, seed, folder, begun, timeout)
    assert begun.num == 1
    return run


def test_the_server_counts_what_the_client_does(target: Target, tmp_path: Path) -> None:
    before = [counted(target, f"{name}_tokens_total") for name in ("prompt", "generation")]
    run = sent(target, Load(concurrency=3, num_requests=8, prompt_tokens=20, output_tokens=9), tmp_path)
    after = [counted(target, f"{name}_tokens_total") for name in ("prompt", "generation")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [8 * 20, 8 * 9]
    found = measures(run)
    assert (found["num_requests"], found["num_failed"], found["num_tokens"]) == (8, 0, 72)
    assert found["gap_ms"].num == 8 * 8
    assert sum(found["timeline"]) == 72
    assert run.load_cpu_s > 0


def test_equal_seeds_have_equal_tokens(target: Target, tmp_path: Path) -> None:
    load = Load(concurrency=2, num_requests=4, prompt_tokens=8, output_tokens=5)
    shas = [measures(sent(target, load, tmp_path, seed))["tokens_sha"] for seed in (1, 1, 2)]
    assert shas[0] == shas[1] != shas[2]


def test_a_closed_loop_has_no_more_at_once(target: Target, tmp_path: Path) -> None:
    run = sent(target, Load(concurrency=2, num_requests=7, prompt_tokens=8, output_tokens=6), tmp_path)
    for request in run.requests:
        running = sum(other.sent_s <= request.sent_s < other.end_s for other in run.requests)
        assert running <= 2


def test_an_open_loop_sends_when_due_however_busy_the_server_is(target: Target, tmp_path: Path) -> None:
    load = Load(rate=400, num_requests=40, prompt_tokens=16, output_tokens=40)
    run = sent(target, load, tmp_path)
    assert median(request.sent_s - request.due_s for request in run.requests) < 0.5
    assert run.requests[-1].due_s < run.requests[0].end_s, "none waits for another's answer"
    assert measures(run)["num_failed"] == 0


def test_a_deadline_ends_the_load_and_names_what_it_ended(target: Target, tmp_path: Path) -> None:
    load = Load(concurrency=1, num_requests=400, prompt_tokens=16, output_tokens=400)
    run = sent(target, load, tmp_path, timeout=2.0)
    assert run.seconds < 10
    errors = measures(run)["errors"]
    assert set(errors) == {"DEADLINE_EXCEEDED"}
    assert len(run.requests) == 400


def test_a_refusal_is_an_error_of_its_request(tmp_path: Path) -> None:
    with demo_server(tmp_path, "--max-batch=1", "--max-queue-requests=1") as target:
        run = sent(target, Load(concurrency=4, num_requests=8, output_tokens=20), tmp_path)
    found = measures(run)
    assert set(found["errors"]) == {"RESOURCE_EXHAUSTED"}
    assert 0 < found["num_failed"] < 8


def test_a_long_prompt_goes_by_another_client(target: Target, tmp_path: Path) -> None:
    """Longer than a frame of HTTP/2: the server says that its context does not hold it."""
    long = Target(target.grpc_address, target.http_address, "demo", target.vocab_size, 100_000)
    run = sent(long, Load(concurrency=1, num_requests=1, prompt_tokens=20_000), tmp_path)
    assert measures(run)["errors"] == {"INVALID_ARGUMENT": 1}


def test_only_some_experts_are_asked_for(target: Target, tmp_path: Path) -> None:
    load = Load(concurrency=1, num_requests=2, prompt_tokens=8, output_tokens=8)
    masked = Target(
        target.grpc_address, target.http_address, "demo", target.vocab_size, 512, allowed_experts=((0, 1),)
    )
    free, few = (measures(sent(each, load, tmp_path)) for each in (target, masked))
    assert free["num_failed"] == few["num_failed"] == 0
    assert free["tokens_sha"] != few["tokens_sha"]


def test_what_the_context_does_not_hold_is_said_before(target: Target, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="500 \\+ 32 tokens, and the model's context holds 512"):
        sent(target, Load(concurrency=1, prompt_tokens=500), tmp_path)


def test_a_server_that_is_not_there_is_a_line(target: Target, tmp_path: Path) -> None:
    nowhere = Target("127.0.0.1:1", "127.0.0.1:1", "demo", target.vocab_size, 512)
    with pytest.raises(RuntimeError, match=r"our client failed: 127\.0\.0\.1:1: "):
        OwnSender().run(nowhere, Load(concurrency=1), 0, tmp_path, lambda: None, 5.0)
