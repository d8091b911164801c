"""A run as llm-d's Benchmark Report, version 0.2.1.

The format: https://github.com/llm-d/llm-d-benchmark, llmdbenchmark/analysis/benchmark_report, whose JSON
Schema the tests validate with. What we have no value for is left out: all of it is optional there.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec

from scaling.cell import Cell
from scaling.observation import QUANTILES, Observation, Spread
from scaling.store import Manifest

VERSION = "0.2.1"
# Of each part that describes itself there.
PART_VERSION = "0.0.1"
Json = dict[str, Any]


def report(manifest: Manifest, cell: Cell, observation: Observation) -> Json:
    """Of one run that did not fail. Equal runs have equal ids."""
    experiment = f"expertmesh:{manifest.name}:{manifest.seed}:{manifest.machine.get('date', '')}"
    return {
        "version": VERSION,
        "run": {
            "uid": str(uuid5(NAMESPACE_URL, f"{experiment}:{cell.key}:{observation.round}")),
            "eid": str(uuid5(NAMESPACE_URL, experiment)),
            "description": f"{cell.label}, round {observation.round}",
            **_time(observation),
        },
        "scenario": {"stack": [_engine(manifest, cell)], "load": _load(manifest, cell, observation)},
        "results": {
            "request_performance": {"aggregate": _aggregate(observation)},
            **_memory(observation),
        },
    }


def tool_version(manifest: Manifest) -> str:
    """Of expertmesh, with its commit, as far as they are known."""
    versions = manifest.machine.get("versions")
    version = versions.get("expertmesh") if isinstance(versions, dict) else None
    commit = manifest.machine.get("commit")
    return f"{version or 'unknown'}+{str(commit)[:12]}" if commit else str(version or "unknown")


def _time(observation: Observation) -> Json:
    try:
        start = datetime.fromisoformat(observation.started_at)
    except ValueError:
        return {}
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    try:
        end = start + timedelta(seconds=observation.seconds)
    except (OverflowError, ValueError):
        return {"time": {"start": start.isoformat()}}
    duration = f"PT{observation.seconds:.3f}S"
    return {"time": {"start": start.isoformat(), "end": end.isoformat(), "duration": duration}}


def _engine(manifest: Manifest, cell: Cell) -> Json:
    gpu = manifest.machine.get("gpu")
    processor = manifest.machine.get("cpu") or "unknown"
    # One share of the experts for each worker, else all of them in one process.
    shares = max(1, cell.workers)
    return {
        "metadata": {"schema_version": PART_VERSION, "label": "expertmesh", "cfg_id": cell.key},
        "standardized": {
            "kind": "inference_engine",
            "tool": "expertmesh",
            "tool_version": tool_version(manifest),
            "role": "replica",
            "replicas": 1,
            "model": {"name": cell.model},
            "accelerator": {
                "model": str(gpu or processor),
                "count": 1 if gpu else 0,
                "parallelism": {"tp": 1, "dp": 1, "pp": 1, "ep": shares, "workers": shares},
            },
        },
        "native": {"args": msgspec.to_builtins(cell), "config": manifest.machine},
    }


def _load(manifest: Manifest, cell: Cell, observation: Observation) -> Json:
    load, own = cell.load, cell.load.tool == "own"
    standardized: Json = {
        "tool": "expertmesh" if own else load.tool,
        "tool_version": tool_version(manifest) if own else "unknown",
        "source": "sampled" if load.trace else "random",
    }
    kind = "fixed" if load.lengths == "exact" and not load.trace else "other"
    asked = _mean_lengths(observation) if load.trace else (load.prompt_tokens, load.output_tokens)
    for name, value in zip(("input_seq_len", "output_seq_len"), asked, strict=False):
        standardized[name] = {"distribution": kind, "value": value}
    if load.concurrency is not None:
        standardized |= {"parallelism": 1, "concurrency": load.concurrency}
    if load.rate is not None:
        standardized["rate_qps"] = load.rate
    return {
        "metadata": {"schema_version": PART_VERSION, "cfg_id": cell.key},
        "standardized": standardized,
        "native": {"args": msgspec.to_builtins(load), "config": {"seed": observation.seed}},
    }


def _aggregate(observation: Observation) -> Json:
    seconds, prompt = observation.seconds, observation.num_prompt_tokens
    input_rate = prompt / seconds if seconds > 0 else 0.0
    lengths = zip(("input_length", "output_length"), _mean_lengths(observation), strict=False)
    latency = {
        "time_to_first_token": _statistics(observation.first_token_ms, "ms"),
        "time_per_output_token": _statistics(observation.per_token_ms, "ms/token"),
        "inter_token_latency": _statistics(observation.gap_ms, "ms/token"),
    }
    return {
        "requests": {
            "total": observation.num_requests,
            "failures": observation.num_failed,
            **{name: {"units": "count", "mean": mean} for name, mean in lengths},
        },
        "latency": {name: found for name, found in latency.items() if found is not None},
        "throughput": {
            "input_token_rate": {"units": "tokens/s", "mean": input_rate},
            "output_token_rate": {"units": "tokens/s", "mean": observation.tokens_per_s},
            "total_token_rate": {"units": "tokens/s", "mean": input_rate + observation.tokens_per_s},
            "request_rate": {"units": "queries/s", "mean": observation.requests_per_s},
        },
    }


def _mean_lengths(observation: Observation) -> tuple[float, ...]:
    """Of complete requests' prompts, and of their outputs where all were complete: what others drew is among
    the tokens."""
    complete = observation.num_requests - observation.num_failed
    prompts = observation.num_prompt_tokens / max(1, complete)
    return (prompts,) if observation.num_failed else (prompts, observation.num_tokens / max(1, complete))


def _statistics(spread: Spread | None, units: str) -> Json | None:
    if spread is None:
        return None
    quantiles = zip(QUANTILES, spread.quantiles, strict=False)
    return {"units": units, "mean": spread.mean} | {f"p{percent}": value for percent, value in quantiles}


def _memory(observation: Observation) -> Json:
    if not observation.memory_mb:
        return {}
    usage = {"units": "MB", "mean": sum(observation.memory_mb.values())}
    component = {"component_label": "expertmesh", "aggregate": {"cpu_memory_usage": usage}}
    return {"observability": {"components": [component]}}
