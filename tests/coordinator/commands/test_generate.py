"""expertmesh generate: the same tokens as the oracle, the same refusals as the server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expertmesh.cli import main
from moe_model import AssembledModel
from moe_model.checkpoint.manifest import expert_file
from tests.moe_model.corruptions import change_tensors, resum
from tests.moe_model.source_files import write_checkpoint

Generate = Callable[..., dict[str, Any]]


@pytest.fixture
def generate(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    def run(*arguments: str) -> dict[str, Any]:
        assert main(["generate", str(tiny_checkpoint), *arguments, "--json"]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return run


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["generate", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [one for one in captured.err.splitlines() if not one.startswith("starting ")]
    return line


@pytest.mark.parametrize("workers", ["0", "3"])
def test_greedy_past_the_window_equals_the_oracle(
    generate: Generate, golden_model: AssembledModel, workers: str
) -> None:
    sliding = ["--context-overflow", "slide", "--max-tokens", "40", "--ignore-eos"]
    how = ["--temperature", "0", "--workers", workers, "--transport", "in-process"]
    answer = generate("--token-ids", "7,8,9", *sliding, *how)
    expected = golden_model.generate(torch.tensor([7, 8, 9]), 40, temperature=0)[0, 3:].tolist()
    assert answer["token_ids"] == expected
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 40, "cached_prompt_tokens": 0}


def test_the_models_own_defaults_are_the_reference(generate: Generate, golden_model: AssembledModel) -> None:
    answer = generate("--token-ids", "7,8,9", "--max-tokens", "20", "--seed", "4", "--ignore-eos")
    assert answer["token_ids"] == golden_model.generate(torch.tensor([7, 8, 9]), 20, seed=4)[0, 3:].tolist()
    assert answer["seed"] == 4


def test_stop_ends_where_the_context_ends(generate: Generate) -> None:
    answer = generate(
        "--token-ids", "7,8,9", "--max-tokens", "100", "--context-overflow", "stop", "--ignore-eos"
    )
    assert answer["usage"]["completion_tokens"] == 32 - 3
    assert answer["finish_reason"] == "length"


def test_a_shorter_context_ends_sooner(generate: Generate) -> None:
    answer = generate("--token-ids", "7,8,9", "--max-tokens", "100", "--max-context", "11", "--ignore-eos")
    assert answer["usage"]["completion_tokens"] == 11 - 3


def test_a_longer_context_than_the_models_is_refused(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_line(capsys, str(tiny_checkpoint), "--token-ids", "7", "--max-context", "33")
    assert "--max-context: 33 is more than the 32 positions of the model" in line


def test_stop_token_ends_and_is_no_text(generate: Generate) -> None:
    free = generate("--token-ids", "7,8,9", "--max-tokens", "8", "--temperature", "0", "--ignore-eos")
    stop = free["token_ids"][3]
    first = free["token_ids"].index(stop)
    answer = generate("--token-ids", "7,8,9", "--temperature", "0", "--stop-token-ids", str(stop))
    assert answer["token_ids"] == free["token_ids"][: first + 1]
    assert (answer["finish_reason"], answer["stop_token_id"]) == ("stop", stop)


def test_text_streams_to_the_terminal(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(tiny_checkpoint), "--prompt", "Hello", "--max-tokens", "5", "--seed", "1"]
    assert main([*arguments, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == text + "\n"
    assert "5 tokens" in shown.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--prompt", ""], "prompt.text"),
        (["--token-ids", ""], "prompt.token_ids"),
        (["--token-ids", "1,320"], "prompt.token_ids[1]"),
        (["--token-ids", "1", "--top-p", "0"], "sampling.top_p"),
        (["--token-ids", "1", "--temperature", "nan"], "sampling.temperature"),
        (["--token-ids", "1", "--top-k", "-1"], "sampling.top_k"),
        (["--token-ids", "1", "--max-tokens", "0"], "--max-tokens"),
        (["--token-ids", "1", "--seed", str(1 << 64)], "sampling.seed"),
        (["--token-ids", ",".join(["5"] * 40)], "prompt.token_ids"),
    ],
)
def test_bad_values_are_named(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    assert part in error_line(capsys, str(tiny_checkpoint), *arguments)


def test_a_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "absent" in error_line(capsys, str(tmp_path / "absent"), "--token-ids", "1")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_weights_that_are_no_numbers_are_never_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    """With right sums, in an expert that two tokens need not meet."""
    folder, name = write_checkpoint(tmp_path / "checkpoint"), expert_file(1, 2)
    change_tensors(folder / name, lambda tensors: tensors["fc1.weight"][0, :1].fill_(torch.nan))
    resum(folder, name)
    how = ["--max-tokens", "2", "--workers", workers, "--transport", "in-process"]
    line = error_line(capsys, str(folder), "--token-ids", "7,8", *how)
    assert f"{name}: tensor 'fc1.weight' has values that are not finite" in line
