"""guidellm 0.8 (https://github.com/vllm-project/guidellm): `guidellm run`, whose JSON has every request."""

from pathlib import Path

from msgspec import Struct

from scaling.cell import Load
from scaling.loads.base import Target, Timed, num_requests
from scaling.loads.tools.tool import ToolSender, body_options, decoded, wall_to_monotonic

REPORT = "guidellm.json"


class _Timings(Struct):
    """Seconds since 1970."""

    targeted_start: float | None = None
    request_start: float | None = None
    first_token_iteration: float | None = None
    last_token_iteration: float | None = None
    request_end: float | None = None
    resolve_end: float | None = None


class _Info(Struct):
    timings: _Timings
    status: str = ""
    error: str | None = None


class _Usage(Struct):
    total_tokens: int | None = None


class _Request(Struct):
    info: _Info
    input_metrics: _Usage
    output_metrics: _Usage


class _Requests(Struct):
    successful: list[_Request] = []
    errored: list[_Request] = []
    incomplete: list[_Request] = []


class _Benchmark(Struct):
    requests: _Requests
    start_time: float


class _Report(Struct):
    benchmarks: list[_Benchmark]


class Guidellm(ToolSender):
    """Prompts of its own, greedy; it tells the first and the last token's times, none between."""

    name = "guidellm"

    def command(self, target: Target, load: Load, seed: int, folder: Path, tokenizer: Path) -> list[str]:
        backend = {
            "kind": "openai_http",
            "target": f"http://{target.http_address}",
            "model": target.model_name,
            "request_format": "/v1/completions",
            "extras": {"body": {"temperature": 0}},
        }
        profile = f"kind=concurrent,streams={load.concurrency}"
        if load.rate is not None:
            profile = f"kind=poisson,rate={load.rate:g}"
        return [
            "run",
            f"--backend={body_options(backend)}",
            f"--profile={profile}",
            f"--constraint=kind=max_requests,count={num_requests(load)}",
            f"--tokenizer=kind=huggingface_auto,model={tokenizer}",
            f"--data=kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.output_tokens}",
            f"--seed=kind=static,value={seed}",
            f"--output=kind=json,path={folder / REPORT}",
            "--disable-console",
        ]

    def read(self, folder: Path, load: Load) -> tuple[float, list[Timed]]:
        report = decoded(folder / REPORT, _Report, self.name)
        if not report.benchmarks:
            raise RuntimeError("guidellm ran no benchmark")
        found = report.benchmarks[0].requests
        requests = [*found.successful, *found.errored, *found.incomplete]
        starts = [_start(request, load) for request in requests]
        began = min(starts, default=report.benchmarks[0].start_time)
        timed = [_timed(request, load, began) for request in requests]
        return began + wall_to_monotonic(), sorted(timed, key=lambda request: request.due_s)


def _start(request: _Request, load: Load) -> float:
    """When it was due: of an open loop as scheduled, of a closed one when it was sent."""
    timings = request.info.timings
    due = timings.targeted_start if load.rate is not None else timings.request_start
    return due or timings.request_start or timings.resolve_end or 0.0


def _timed(request: _Request, load: Load, began: float) -> Timed:
    timings, due = request.info.timings, _start(request, load)
    num_tokens = request.output_metrics.total_tokens or 0
    times = [timings.first_token_iteration, timings.last_token_iteration][:num_tokens]
    is_whole = request.info.status == "completed"
    return Timed(
        due_s=due - began,
        sent_s=(timings.request_start or due) - began,
        end_s=(timings.request_end or timings.resolve_end or due) - began,
        token_s=tuple(at - began for at in times if at is not None),
        num_prompt_tokens=request.input_metrics.total_tokens or 0,
        num_tokens=num_tokens,
        error=None if is_whole else (request.info.error or request.info.status)[:200],
    )
