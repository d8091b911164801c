"""benchmarks.serve: what rounds amount to, the engine alone, and a whole run."""

import json
from pathlib import Path

import pytest

from benchmarks import arguments, serve
from benchmarks.latency import Timing
from benchmarks.serve_rounds import Alone, Load, Plan, Round, Served, _serve_arguments, measure_alone
from coordinator.config.engine import EngineConfig
from coordinator.config.serve import ServeConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.messages.output import Output
from expertmesh.commands.options import add_options, options_of
from expertmesh.commands.parser import OneLineParser
from tests.coordinator.engine.fakes import CountingRunner, engine_over
from tests.integration.processes import DEMO_CHECKPOINT

FOUR = Load(clients=4)
PLAN = Plan(prompt_tokens=4, new_tokens=10, turns=3, seconds=1.0, vocab_size=50)


def test_the_server_is_told_what_the_engine_alone_has() -> None:
    engine = EngineConfig(dtype="bfloat16", num_threads=3, max_num_seqs=80)
    given = _serve_arguments(engine, WorkersConfig(num_workers=1))
    parser = OneLineParser()
    add_options(parser, ServeConfig)
    config = options_of(parser.parse_args(["checkpoint", *given]), ServeConfig)
    assert (config.engine, config.workers) == (engine, WorkersConfig(num_workers=1))
    assert config.admission.max_requests >= engine.max_num_seqs


def a_round(rate: float, alone: float, first_token: float) -> Round:
    timing = Timing(first_token, per_token=0.1, total=2.0, gaps=(0.1, 0.2), num_tokens=6)
    served = Served(rate, [timing], num_refused=1, server_cores=1.5, client_cores=0.25)
    return Round({4: Alone(alone, 2 * alone)}, {FOUR: served})


def test_a_share_is_of_the_same_round() -> None:
    # Ratios 0.5, 0.8, 0.9; that of the medians would be 0.9.
    rounds = [a_round(50.0, 100.0, 1.0), a_round(80.0, 100.0, 2.0), a_round(90.0, 100.0, 3.0)]
    slow = [a_round(90.0, 100.0, 1.0), a_round(40.0, 80.0, 2.0), a_round(160.0, 200.0, 3.0)]
    assert serve.served_row(0, FOUR, rounds)["share_of_engine"] == 0.8
    assert serve.served_row(0, FOUR, slow)["share_of_engine"] == 0.8
    assert serve.served_row(0, FOUR, slow)["share_of_engine_decode"] == 0.4
    assert serve.served_row(0, FOUR, slow)["share_of_engine_rounds"] == [0.9, 0.5, 0.8]


def test_waits_are_those_of_all_rounds() -> None:
    row = serve.served_row(2, FOUR, [a_round(1.0, 1.0, first) for first in (3.0, 1.0, 2.0)])
    assert row["first_token_seconds"] == {"p50": 2.0, "p99": 3.0}
    assert row["gap_seconds"] == {"p50": 0.1, "p99": 0.2}
    assert (row["complete"], row["refused"], row["workers"]) == (3, 3, 2)
    assert row["tokens_per_message"] == 2.0


def test_an_open_loop_is_no_share_of_anything() -> None:
    load = Load(rate=2.5)
    served = Served(10.0, [], num_refused=0, server_cores=0.0, client_cores=0.0)
    row = serve.served_row(0, load, [Round({}, {load: served})])
    assert "share_of_engine" not in row
    assert row["first_token_seconds"] == {"p50": 0.0, "p99": 0.0}
    assert str(load) == "2.5 requests/s"


def test_no_two_prompts_begin_alike() -> None:
    prompts = PLAN.prompts()
    first = {next(prompts)[0] for _ in range(PLAN.vocab_size - 4)}
    assert len(first) == PLAN.vocab_size - 4


def test_the_engine_alone_runs_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks once for each step says how many there were."""
    engine = engine_over(CountingRunner(), max_seq_len=14)
    steps, step = [0.0], engine.step

    def ticking() -> list[Output]:
        steps[0] += 1.0
        return list(step())

    monkeypatch.setattr(engine, "step", ticking)
    monkeypatch.setattr("benchmarks.serve_rounds.time.perf_counter", lambda: steps[0])
    alone = measure_alone(engine, PLAN, 2, PLAN.prompts())
    assert not engine.has_work
    # A step for the prompts, then nine more; two tokens in each.
    assert alone == Alone(tokens_per_second=2.0, decode_tokens_per_second=2.0)


def test_a_context_that_is_too_short_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="of 20 tokens"):
        measure_alone(engine_over(CountingRunner(), max_seq_len=12), PLAN, 2, PLAN.prompts())


@pytest.mark.parametrize("text", ["", "2,8", "0.5"])
def test_rates(text: str) -> None:
    rates = arguments.serve().parse_args(["--rates", text]).rates
    assert rates == [float(part) for part in text.split(",") if part]


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path) -> None:
    arguments = [
        "--checkpoint",
        str(DEMO_CHECKPOINT),
        "--dtype",
        "float32",
        "--workers",
        "0",
        "--threads",
        "1",
    ]
    arguments += ["--clients", "1,2", "--rates", "4", "--requests", "1", "--seconds", "1", "--rounds", "1"]
    serve.main([*arguments, "--new-tokens", "8", "--out", str(tmp_path)])
    kept, text = sorted(tmp_path.iterdir())
    result = json.loads(kept.read_text(encoding="utf-8"))["result"]
    assert [row["batch"] for row in result["engine"]] == [1, 2]
    assert [(row["clients"], row["rate"]) for row in result["served"]] == [(1, 0.0), (2, 0.0), (0, 4.0)]
    assert all(row["tokens_per_second"] > 0 for row in [*result["engine"], *result["served"]])
    assert "2 clients" in text.read_text(encoding="utf-8")
