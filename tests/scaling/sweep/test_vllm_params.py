"""The parameter files of `vllm bench sweep`."""

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.commands.sweep_arguments import SweepArguments
from moe_model.errors import ConfigError
from scaling.sweep.given import given_plan
from scaling.sweep.vllm_params import BENCH, SERVE, parameters


def test_a_list_and_an_object_of_named_ones() -> None:
    listed = [{"max-num-seqs": 8}, {"max_num_seqs": 16, "max_num_batched_tokens": 512}]
    found = parameters(listed, SERVE, "f")
    assert found == [{"serve.max-batch": 8}, {"serve.max-batch": 16, "serve.max-step-tokens": 512}]
    assert parameters({"a": listed[0], "b": listed[1]}, SERVE, "f") == found


def test_a_load() -> None:
    given = {
        "_benchmark_name": "quick",
        "max_concurrency": 4,
        "request_rate": "inf",
        "num_prompts": 9,
        "random-input-len": 5,
        "random-output-len": 6,
        "ignore_eos": True,
    }
    assert parameters([given], BENCH, "f") == [
        {
            "load.concurrency": 4,
            "load.num_requests": 9,
            "load.prompt_tokens": 5,
            "load.output_tokens": 6,
        }
    ]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([{"max_num_sequences": 8}], "1: max_num_sequences has no meaning here"),
        ({"big": {"tensor_parallel_size": 2}}, "big: tensor_parallel_size: only 1"),
        ([{"max-num-seqs": 8, "max_num_seqs": 9}], "said twice"),
        ([{"dtype": "float8"}], "dtype"),
        ([{"kv_cache_memory_bytes": 5}], "kv_cache_memory_bytes"),
        ([3], "1: no object"),
        ([], "has no configuration"),
        ("x", "neither a list"),
    ],
)
def test_what_has_no_meaning_is_named(found: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parameters(found, SERVE, "f.json")


def test_files_make_a_product(tmp_path: Path) -> None:
    serve, bench = tmp_path / "serve.json", tmp_path / "bench.json"
    serve.write_text(json.dumps([{"max_num_seqs": 8}, {"max_num_seqs": 16}]))
    bench.write_text(json.dumps({"one": {"max_concurrency": 1}, "more": {"request_rate": 2.5}}))
    plan = given_plan(SweepArguments(serve_params=serve, bench_params=bench, model="m"))
    assert [(c.serve["max-batch"], c.load.concurrency, c.load.rate) for c in plan.cells.values()] == [
        *((8, 1, None), (8, None, 2.5)),
        *((16, 1, None), (16, None, 2.5)),
    ]


def test_a_file_may_be_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "both.json"
    path.write_text(json.dumps([{"max_num_seqs": 8, "max_concurrency": 2}]))
    (cell,) = given_plan(SweepArguments(file=str(path), model="m")).cells.values()
    assert (cell.model, cell.serve, cell.load.concurrency) == ("m", {"max-batch": 8}, 2)
    with pytest.raises(ConfigError, match="model"):
        given_plan(SweepArguments(file=str(path)))
