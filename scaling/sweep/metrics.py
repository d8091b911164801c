"""What a server has counted between two looks at its /metrics."""

import http.client
from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from coordinator.metrics import of_engine
from coordinator.metrics.families import Family

_TIMEOUT = 10.0
MAX_BYTES = 16 << 20
# Sums by the sample's name and the value of its one label that is not the model's.
Counts = Mapping[tuple[str, str], float]


def counts(http_address: str) -> Counts:
    """All samples that are now. Raises RuntimeError."""
    host, _, port = http_address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_TIMEOUT)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        data = response.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(f"/metrics of {http_address}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"/metrics of {http_address}: status {response.status}")
    return parsed(data.decode(errors="replace"))


def parsed(text: str) -> Counts:
    """Raises RuntimeError."""
    found: dict[tuple[str, str], float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = [value for name, value in sample.labels.items() if name not in ("model_name", "le")]
                key = (sample.name, "/".join(labels))
                if not sample.name.endswith("_bucket"):
                    found[key] = found.get(key, 0.0) + float(sample.value)
    except ValueError as error:
        raise RuntimeError(f"/metrics: {error}") from error
    return found


class Between:
    """Differences of two looks. Counters that began anew meanwhile, of an engine that was started again,
    count from 0."""

    def __init__(self, before: Counts, after: Counts) -> None:
        self._before, self._after = before, after

    def total(self, family: Family, label: str | None = None, part: str = "") -> float:
        """Of a counter, or of a part of a histogram, `sum` or `count`: all labels together, or one."""
        name = f"{family.name}_{part or 'total'}"
        return sum(
            value - before if value >= (before := self._before.get((found, of), 0.0)) else value
            for (found, of), value in self._after.items()
            if found == name and label in (None, of)
        )

    def mean(self, family: Family) -> float | None:
        """Of a histogram; None where nothing was counted."""
        num = self.total(family, part="count")
        return self.total(family, part="sum") / num if num else None


def measures(between: Between) -> dict[str, Any]:
    """Fields of an Observation: steps, their split, balancedness, the straggler's time, bytes."""
    num_steps = between.total(of_engine.STEP_SECONDS, part="count")
    straggler = between.mean(of_engine.STRAGGLER_SECONDS)
    return {
        "num_steps": round(num_steps),
        "split_ms": split_ms(between, num_steps),
        "balancedness": between.mean(of_engine.BALANCEDNESS),
        "straggler_ms": None if straggler is None else 1e3 * straggler,
        "bytes_sent": between.total(of_engine.BYTES, "dispatch"),
        "bytes_received": between.total(of_engine.BYTES, "combine"),
    }


def split_ms(between: Between, num_steps: float) -> dict[str, float]:
    """Of a mean step, by the parts that `scaling.sweep` names; empty where there was none."""
    if not num_steps:
        return {}
    whole = 1e3 * between.total(of_engine.STEP_SECONDS, part="sum") / num_steps
    dispatch = 1e3 * between.total(of_engine.DISPATCH_SECONDS, part="sum") / num_steps
    combine = 1e3 * between.total(of_engine.COMBINE_SECONDS, part="sum") / num_steps
    return {"dispatch": dispatch, "combine": combine, "rest": max(0.0, whole - dispatch - combine)}
