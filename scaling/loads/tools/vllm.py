"""The client of vLLM 0.33 (https://docs.vllm.ai/en/latest/cli/bench/serve/): `vllm bench serve`.

Its result has a list for each measure, in the order of requests."""

from pathlib import Path

from msgspec import Struct

from scaling.cell import Load
from scaling.loads.base import Target, Timed, num_requests
from scaling.loads.tools.tool import ToolSender, decoded

REPORT = "vllm.json"


class _Report(Struct):
    """Seconds; `start_times` by time.perf_counter(), which is time.monotonic() on Linux. `queue_times`: from
    when a request was due until it was sent. `itls`: between chunks of its stream."""

    input_lens: list[int]
    output_lens: list[int]
    ttfts: list[float]
    itls: list[list[float]]
    start_times: list[float]
    latencies: list[float]
    errors: list[str]
    queue_times: list[float] = []


class Vllm(ToolSender):
    """Prompts of its own, greedy, to the end of their lengths. Tokens of prompts are counted by its own
    tokenizer, those of outputs by the server."""

    name = "vllm"

    def command(self, target: Target, load: Load, seed: int, folder: Path, tokenizer: Path) -> list[str]:
        how = [f"--max-concurrency={load.concurrency}"]
        if load.rate is not None:
            how = [f"--request-rate={load.rate:g}"]
        return [
            *("bench", "serve"),
            "--backend=openai",
            f"--base-url=http://{target.http_address}",
            f"--model={target.model_name}",
            f"--tokenizer={tokenizer}",
            "--dataset-name=random",
            f"--random-input-len={load.prompt_tokens}",
            f"--random-output-len={load.output_tokens}",
            f"--num-prompts={num_requests(load)}",
            *how,
            "--ignore-eos",
            "--temperature=0",
            f"--seed={seed}",
            "--save-result",
            "--save-detailed",
            f"--result-dir={folder}",
            f"--result-filename={REPORT}",
            "--disable-tqdm",
        ]

    def read(self, folder: Path, load: Load) -> tuple[float, list[Timed]]:
        report = decoded(folder / REPORT, _Report, self.name)
        num = len(report.start_times)
        lists = (
            report.input_lens,
            report.output_lens,
            report.ttfts,
            report.itls,
            report.latencies,
            report.errors,
        )
        if any(len(each) != num for each in lists):
            raise RuntimeError(f"vllm wrote {REPORT} with lists of several lengths")
        queued = (
            report.queue_times if len(report.queue_times) == num and load.rate is not None else [0.0] * num
        )
        due = [start - wait for start, wait in zip(report.start_times, queued, strict=True)]
        began = min(due, default=0.0)
        return began, [_timed(report, index, due[index], began) for index in range(num)]


def _timed(report: _Report, index: int, due: float, began: float) -> Timed:
    sent = report.start_times[index] - began
    times = []
    if report.output_lens[index] and report.ttfts[index] > 0:
        times.append(sent + report.ttfts[index])
        for gap in report.itls[index]:
            times.append(times[-1] + gap)
    return Timed(
        due_s=due - began,
        sent_s=sent,
        end_s=sent + report.latencies[index],
        token_s=tuple(times),
        num_prompt_tokens=report.input_lens[index],
        num_tokens=report.output_lens[index],
        error=" ".join(report.errors[index].split())[:200] or None,
    )
