"""A run with the keys that `vllm bench serve --save-result` writes.

The keys: https://github.com/vllm-project/vllm, vllm/benchmarks/serve.py, at commit 009e6d4. A key whose value
an observation does not have is there with null, so that what reads it by name finds it.
"""

from datetime import datetime
from typing import Any

from scaling.cell import Cell
from scaling.observation import Observation, Spread
from scaling.results.measures import quantile

# An observation's timeline is in tenths of a second.
TENTHS = 10


def result(cell: Cell, observation: Observation) -> dict[str, Any]:
    """Of one run that did not fail. Only the keys that are there without --save-detailed."""
    load, seconds = cell.load, observation.seconds
    total = observation.num_prompt_tokens + observation.num_tokens
    return {
        "date": _date(observation.started_at),
        "endpoint_type": "expertmesh",
        "backend": "expertmesh",
        "label": cell.label,
        "model_id": cell.model,
        "tokenizer_id": cell.model,
        "num_prompts": observation.num_requests,
        # A trace has times of its own.
        "request_rate": load.rate if load.rate is not None or load.concurrency is None else "inf",
        "burstiness": 1.0,
        "max_concurrency": load.concurrency,
        "duration": seconds,
        "completed": observation.num_requests - observation.num_failed,
        "failed": observation.num_failed,
        "total_input_tokens": observation.num_prompt_tokens,
        "total_output_tokens": observation.num_tokens,
        "request_throughput": observation.requests_per_s,
        "request_goodput": None,
        "output_throughput": observation.tokens_per_s,
        "total_token_throughput": total / seconds if seconds > 0 else 0.0,
        "max_output_tokens_per_s": _most_in_a_second(observation.timeline),
        "max_concurrent_requests": load.concurrency,
        "rtfx": 0.0,
        **_latency("ttft", observation.first_token_ms),
        **_latency("tpot", observation.per_token_ms),
        **_latency("itl", observation.gap_ms),
    }


def _date(started_at: str) -> str:
    try:
        return datetime.fromisoformat(started_at).strftime("%Y%m%d-%H%M%S")
    except ValueError:
        return started_at


def _most_in_a_second(timeline: list[int]) -> float | None:
    seconds = [sum(timeline[at : at + TENTHS]) for at in range(0, len(timeline), TENTHS)]
    return float(max(seconds)) if seconds else None


def _latency(name: str, spread: Spread | None) -> dict[str, float | None]:
    return {
        f"mean_{name}_ms": None if spread is None else spread.mean,
        f"median_{name}_ms": quantile(spread, 50),
        f"std_{name}_ms": None,
        f"p99_{name}_ms": quantile(spread, 99),
    }
