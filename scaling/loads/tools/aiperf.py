"""aiperf 0.13 (https://github.com/ai-dynamo/aiperf): `aiperf profile`, with a line of JSON for a request."""

from pathlib import Path

import msgspec
from msgspec import Struct

from scaling.cell import Load
from scaling.loads.base import Target, Timed, num_requests
from scaling.loads.tools.tool import ToolSender, wall_to_monotonic

REPORT = "profile_export.jsonl"


class _Metadata(Struct):
    """Nanoseconds since 1970."""

    credit_issued_ns: int
    request_start_ns: int
    request_end_ns: int
    was_cancelled: bool = False


class _Value(Struct):
    value: float | list[float]


class _Error(Struct):
    code: int | None = None
    type: str | None = None
    message: str | None = None


class _Record(Struct):
    metadata: _Metadata
    metrics: dict[str, _Value] = {}
    error: _Error | None = None

    def number(self, *names: str) -> float:
        """Of the first of these metrics that is there; 0 of none."""
        for name in names:
            found = self.metrics.get(name)
            if found is not None and not isinstance(found.value, list):
                return found.value
        return 0.0


class Aiperf(ToolSender):
    """Prompts of its own, greedy, to the end of their lengths. Times are those of chunks of the stream."""

    name = "aiperf"

    def command(self, target: Target, load: Load, seed: int, folder: Path, tokenizer: Path) -> list[str]:
        how = [f"--concurrency={load.concurrency}"]
        if load.rate is not None:
            how = [f"--request-rate={load.rate:g}", "--arrival-pattern=poisson"]
        return [
            "profile",
            f"--model={target.model_name}",
            f"--url=http://{target.http_address}",
            "--endpoint-type=completions",
            "--streaming",
            f"--tokenizer={tokenizer}",
            *how,
            f"--request-count={num_requests(load)}",
            f"--isl={load.prompt_tokens}",
            f"--osl={load.output_tokens}",
            "--extra-inputs=ignore_eos:true",
            "--extra-inputs=temperature:0",
            f"--random-seed={seed}",
            f"--artifact-dir={folder / self.name}",
            "--ui=none",
            "--no-gpu-telemetry",
            "--no-server-metrics",
        ]

    def read(self, folder: Path, load: Load) -> tuple[float, list[Timed]]:
        path = folder / self.name / REPORT
        try:
            lines = path.read_bytes().splitlines()
            records = [msgspec.json.decode(line, type=_Record) for line in lines if line]
        except OSError as error:
            raise RuntimeError(f"aiperf left no {REPORT}: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise RuntimeError(f"aiperf wrote {REPORT} as this does not know it: {error}") from error
        began = min((_due_ns(record) for record in records), default=0)
        timed = [_timed(record, began) for record in records]
        return began / 1e9 + wall_to_monotonic(), sorted(timed, key=lambda request: request.due_s)


def _due_ns(record: _Record) -> int:
    """Its scheduler lets a request go when it is due: by its rate, or when another has ended."""
    return min(record.metadata.credit_issued_ns, record.metadata.request_start_ns)


def _timed(record: _Record, began: int) -> Timed:
    sent = (record.metadata.request_start_ns - began) / 1e9
    end = (record.metadata.request_end_ns - began) / 1e9
    times = []
    if "time_to_first_token" in record.metrics:
        times.append(sent + record.number("time_to_first_token") / 1e3)
        gaps = record.metrics.get("inter_chunk_latency")
        for gap in gaps.value if gaps is not None and isinstance(gaps.value, list) else ():
            times.append(times[-1] + gap / 1e3)
    error = record.error
    said = f"{error.code or ''} {error.type or ''} {error.message or ''}".strip()[:200] if error else None
    return Timed(
        due_s=(_due_ns(record) - began) / 1e9,
        sent_s=sent,
        end_s=end,
        token_s=tuple(times),
        num_prompt_tokens=round(record.number("usage_prompt_tokens", "input_sequence_length")),
        num_tokens=round(record.number("usage_completion_tokens", "output_sequence_length")),
        error=said or ("cancelled" if record.metadata.was_cancelled else None),
    )
