"""lm-eval, unmodified, over /v1/completions: log probabilities of choices, and texts, of local data."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from expertmesh import Client
from scaling.loads.base import Target
from scaling.loads.tools.tokenizer_folder import tokenizer_folder
from scaling.loads.tools.tool import program, run_tool
from tests.scaling.loads.serving import counted, demo_server

pytestmark = [pytest.mark.loads, pytest.mark.timeout(600)]

TASK = Path(__file__).parent / "lm_eval_task"
DOCS = [json.loads(line) for line in (TASK / "choices.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with demo_server(tmp_path_factory.mktemp("serve")) as found:
        yield found


def evaluated(target: Target, task: str, folder: Path) -> tuple[dict[str, float], list[dict[str, object]]]:
    """What it says of a task, and its samples in the order of the documents."""
    for path in TASK.glob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("DATA", str(TASK / "choices.jsonl"))
        (folder / path.name).write_text(text, encoding="utf-8")
    model = {
        "model": target.model_name,
        "base_url": f"http://{target.http_address}/v1/completions",
        "tokenizer": str(tokenizer_folder(target, folder)),
        "tokenizer_backend": "huggingface",
        "num_concurrent": "2",
        "max_length": str(target.max_seq_len),
    }
    command = [
        *(str(program("lm-eval")), "run", "--model", "local-completions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in model.items())),
        *(
            "--tasks",
            task,
            "--include_path",
            str(folder),
            "--output_path",
            str(folder / "out"),
            "--log_samples",
        ),
    ]
    run_tool("lm-eval", command, folder, 300.0)
    results = json.loads(next(folder.glob("out/**/results_*.json")).read_text(encoding="utf-8"))
    lines = next(folder.glob(f"out/**/samples_{task}_*.jsonl")).read_text(encoding="utf-8").splitlines()
    samples = sorted((json.loads(line) for line in lines), key=lambda sample: int(sample["doc_id"]))
    return results["results"][task], samples


def test_choices_have_the_log_probabilities_of_the_server(target: Target, tmp_path: Path) -> None:
    before = counted(target, "request_success_total")
    found, samples = evaluated(target, "expertmesh_choices", tmp_path)
    assert found["acc,none"] == 1.0
    num_choices = sum(len(doc["choices"]) for doc in DOCS)
    assert counted(target, "request_success_total") - before == num_choices
    assert sum(len(sample["filtered_resps"]) for sample in samples) == num_choices  # type: ignore[arg-type,misc]


def test_texts_are_those_of_our_client(target: Target, tmp_path: Path) -> None:
    _, samples = evaluated(target, "expertmesh_continuations", tmp_path)
    with Client(target.grpc_address) as client:
        for doc, sample in zip(DOCS, samples, strict=True):
            # It sends token ids, without BOS.
            answer = client.generate(
                doc["question"],
                max_tokens=6,
                temperature=0.0,
                stop_sequences=["\n"],
                add_special_tokens=False,
            )
            assert sample["filtered_resps"] == [answer.text]
