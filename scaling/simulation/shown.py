"""What a simulation gave, as lines for people and as plain JSON."""

from collections.abc import Sequence
from typing import Any

from msgspec import to_builtins

from scaling.observation import Spread
from scaling.simulation.grid import Pays, Row
from scaling.simulation.memory import Fit
from scaling.simulation.outcome import Outcome
from scaling.simulation.setting import Setting
from scaling.simulation.steady import Steady


def load_lines(setting: Setting, memory: Fit, found: Outcome) -> list[str]:
    """Of a load that was sent."""
    lines = [
        *head_lines(setting, memory),
        f"{found.tokens_per_s:.4g} tokens/s: {found.num_tokens} tokens of {found.num_requests} requests"
        f" in {found.seconds:.4g} s; {found.num_failed} failed",
        _spread("first token", found.first_token_ms),
        _spread("gap", found.gap_ms) + f"; longest {found.max_gap_ms:.4g}",
        f"step {found.step_ms:.4g} ms, mean of {found.num_steps}: {_shares(found.shares)}",
    ]
    if found.num_retried or found.num_hedged:
        lines.append(
            f"{found.num_hedged} calls hedged; steps that waited for lost experts: {found.num_retried}"
        )
    return [*lines, f"binds: {found.binds}"]


def steady_lines(setting: Setting, memory: Fit, found: Steady) -> list[str]:
    """Of streams that go on."""
    return [
        *head_lines(setting, memory),
        f"{found.tokens_per_s:.4g} tokens/s: {found.batch} streams,"
        f" {found.micro_batches} parts of a step in flight",
        f"step {found.step_ms:.4g} ms, known to {found.error:.1%} by {found.num_steps}:"
        f" {_shares(found.shares)}",
        f"binds: {found.binds}",
    ]


def head_lines(setting: Setting, memory: Fit) -> list[str]:
    lines = [
        f"{setting.name}: {len(setting.coordinators)} coordinator(s), {len(setting.workers)} workers; "
        f"a coordinator holds {memory.coordinator_gb:.4g} GB and {memory.cache_gb:.4g} GB of cache, "
        f"the fullest worker {memory.worker_gb:.4g} GB"
    ]
    return [*lines, f"NOT enough memory: {memory.lacks}"] if memory.lacks else lines


def grid_lines(found: Sequence[Pays]) -> list[str]:
    """From which batch on the workers are quicker than one machine, by model, workers and link."""
    links = sorted({(each.gbit, each.delay_ms) for each in found})
    heads = [f"{gbit:g} Gbit/s {delay:g} ms" for gbit, delay in links]
    lines = [
        "batch from which on workers are quicker than one machine, how many times at best; what binds there"
    ]
    for model, workers in dict.fromkeys((each.model, each.workers) for each in found):
        lines.append(f"{model}, {workers} workers")
        by_link = {
            (each.gbit, each.delay_ms): each
            for each in found
            if (each.model, each.workers) == (model, workers)
        }
        lines += [f"  {head:<20} {_pays(by_link[link])}" for link, head in zip(links, heads, strict=True)]
    return lines


def as_json(**parts: Any) -> dict[str, Any]:
    found: dict[str, Any] = to_builtins(parts)
    return found


def rows_json(rows: Sequence[Row], found: Sequence[Pays]) -> dict[str, Any]:
    return as_json(rows=rows, pays=found)


def _pays(each: Pays) -> str:
    if each.from_batch is None:
        return f"never            {each.best_times:6.2f} x  {each.binds}"
    return f"from batch {each.from_batch:<5} {each.best_times:6.2f} x  {each.binds}"


def _spread(name: str, found: Spread | None) -> str:
    if found is None:
        return f"{name}: none"
    q = found.quantiles
    return f"{name} ms: median {found.median:.4g}, 5 % {q[0]:.4g}, 95 % {q[5]:.4g}, 99 % {q[6]:.4g}"


def _shares(shares: dict[str, float]) -> str:
    known = sorted(((share, name) for name, share in shares.items() if share >= 0.005), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in known)
