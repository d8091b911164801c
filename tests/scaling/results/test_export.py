"""Files for other projects: valid by llm-d's schema, and with vLLM's keys."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from moe_model.errors import ConfigError
from scaling.cell import Cell, Load
from scaling.results import commands
from scaling.results.export import export
from scaling.store import Results
from tests.scaling.results import made

SCHEMA = Path(__file__).parents[2] / "data" / "llm-d" / "benchmark-report-0.2.1.json"
# That `vllm bench serve --save-result` writes without --save-detailed, at commit 009e6d4.
VLLM_KEYS = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts"),
    *("request_rate", "burstiness", "max_concurrency", "duration", "completed", "failed"),
    *("total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput"),
    *("output_throughput", "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests"),
    "rtfx",
    *(f"{take}_{what}_ms" for take in ("mean", "median", "std", "p99") for what in ("ttft", "tpot", "itl")),
}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def documents(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def test_reports_are_valid_by_llm_d_s_schema(
    everything: Results, validator: jsonschema.Draft202012Validator
) -> None:
    paths = export(everything, "llm-d")
    assert len(paths) == 3 * len(everything.manifest.cells)
    for document in documents(paths):
        validator.validate(document)


def test_the_schema_refuses_what_is_none(
    everything: Results, validator: jsonschema.Draft202012Validator
) -> None:
    document = documents(export(everything, "llm-d"))[0]
    aggregate = document["results"]["request_performance"]["aggregate"]
    aggregate["latency"]["time_to_first_token"]["units"] = "fortnights"
    assert not validator.is_valid(document)
    del aggregate["latency"]["time_to_first_token"]
    assert validator.is_valid(document)
    document["scenario"]["stack"][0]["standardized"]["cores"] = 2
    assert not validator.is_valid(document)


def test_a_report_says_what_was_observed(small: Results) -> None:
    document = documents(export(small, "llm-d"))[0]
    run = small.observations[0]
    aggregate = document["results"]["request_performance"]["aggregate"]
    assert run.first_token_ms is not None
    assert aggregate["latency"]["time_to_first_token"]["p50"] == run.first_token_ms.median
    assert aggregate["latency"]["time_to_first_token"]["units"] == "ms"
    assert aggregate["throughput"]["output_token_rate"] == {"units": "tokens/s", "mean": run.tokens_per_s}
    assert aggregate["requests"]["input_length"]["mean"] == run.num_prompt_tokens / run.num_requests
    assert document["scenario"]["load"]["standardized"]["concurrency"] == 1
    assert document["version"] == "0.2.1"


def test_lengths_of_runs_with_failures_are_those_of_what_was_complete(small: Results) -> None:
    run = msgspec.structs.replace(small.observations[0], num_requests=10, num_failed=5, num_prompt_tokens=160)
    small.observations = [run]
    [document] = documents(export(small, "llm-d"))
    found = document["results"]["request_performance"]["aggregate"]["requests"]
    assert found["input_length"]["mean"] == 32
    assert "output_length" not in found


def test_runs_have_ids_of_their_own_and_one_experiment_s(small: Results) -> None:
    found = [document["run"] for document in documents(export(small, "llm-d"))]
    assert len({run["uid"] for run in found}) == len(found)
    assert len({run["eid"] for run in found}) == 1


@pytest.mark.parametrize(
    "load",
    [
        Load(rate=2.5),
        Load(trace="trace.csv", trace_format="azure"),
        Load(concurrency=2, tool="guidellm"),
        Load(concurrency=2, lengths="lognormal"),
    ],
)
def test_other_loads_are_valid_too(
    tmp_path: Path, validator: jsonschema.Draft202012Validator, load: Load
) -> None:
    results = made.make(tmp_path / "a", [Cell(model="m", load=load)], rounds=1)
    for document in documents(export(results, "llm-d")):
        validator.validate(document)
        standardized = document["scenario"]["load"]["standardized"]
        assert standardized["tool"] == ("expertmesh" if load.tool == "own" else "guidellm")
        assert standardized.get("rate_qps") == load.rate
        is_fixed = load.trace is None and load.lengths == "exact"
        assert standardized["input_seq_len"]["distribution"] == ("fixed" if is_fixed else "other")
    [document] = documents(export(results, "vllm"))
    assert document["request_rate"] == (None if load.trace else load.rate or "inf")


def test_every_key_of_vllm_bench_serve(small: Results) -> None:
    [document, *_] = documents(export(small, "vllm"))
    assert set(document) == VLLM_KEYS
    run = small.observations[0]
    assert document["output_throughput"] == run.tokens_per_s
    assert document["request_rate"] == "inf"
    assert document["date"] == "20260102-030405"
    assert document["completed"] == run.num_requests - run.num_failed
    assert run.gap_ms is not None
    assert document["median_itl_ms"] == run.gap_ms.median
    assert document["p99_itl_ms"] == run.gap_ms.quantiles[-1]
    assert document["max_output_tokens_per_s"] == max(
        sum(run.timeline[at : at + 10]) for at in range(0, len(run.timeline), 10)
    )


def test_a_run_that_says_little_is_exported(
    tmp_path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    results = made.make(tmp_path / "a", made.single(), rounds=1, predicted=False)
    bare = msgspec.structs.replace(
        results.observations[0],
        first_token_ms=None,
        per_token_ms=None,
        gap_ms=None,
        memory_mb={},
        timeline=[],
        started_at="yesterday",
        seconds=0.0,
    )
    results.observations = [bare]
    for document in documents(export(results, "llm-d")):
        validator.validate(document)
    [document] = documents(export(results, "vllm"))
    assert set(document) == VLLM_KEYS
    assert document["median_ttft_ms"] is None


def test_the_command_writes_where_it_is_told(
    small: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.export(small.folder, "vllm", tmp_path / "out") == 0
    assert capsys.readouterr().out == f"18 files: {tmp_path / 'out'}\n"
    assert len(list((tmp_path / "out").glob("*.json"))) == 18
    (tmp_path / "file").write_text("")
    for form, out, message in (("csv", None, "llm-d, vllm"), ("vllm", tmp_path / "file", "a file")):
        with pytest.raises(ConfigError, match=message):
            commands.export(small.folder, form, out)


def test_nothing_that_ran_is_nothing_to_export(tmp_path: Path) -> None:
    results = made.make(tmp_path / "a", made.small(), rounds=0)
    with pytest.raises(ConfigError, match="nothing to export"):
        export(results, "llm-d")
    assert not (results.folder / "llm-d").exists()
