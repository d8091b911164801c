"""Made-up results of several shapes: what a real sweep would have written, by a formula and a seed."""

from collections.abc import Sequence
from math import exp
from pathlib import Path
from random import Random

from scaling.cell import Cell, Fault, Load, Skew
from scaling.link import Link
from scaling.observation import Observation, Spread
from scaling.prediction import Interval, Prediction
from scaling.store import VERSION, Manifest, Results

MACHINE = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "A processor",
    "cpu_flags": ["avx2", "fma"],
    "cores": 2,
    "memory_bytes": 8 << 30,
    "gpu": None,
    "kernel": "Linux 6.1",
    "python": "3.12.1",
    "versions": {"torch": "2.9", "ray": "2.50"},
    "load_average": [0.1, 0.2, 0.3],
}
LINKS = (Link(), Link(gbit=1.0, delay_ms=0.5), Link(gbit=0.1, delay_ms=2.0))


def rate(cell: Cell) -> float:
    """Tokens a second, by a rule that has the shape of the real thing."""
    at_once = cell.load.concurrency or 4
    others = min(cell.workers, 4)
    step = 0.004 + 0.0015 * at_once / (1 + 0.7 * others) + 0.002 * (others > 0)
    step += 2e-3 * cell.link.delay_ms
    step += 0.0008 * at_once / (8 * cell.link.gbit) if cell.link.gbit else 0.0
    return at_once / step * (2.0 if "qwen" in cell.model else 1.0)


def observe(cell: Cell, number: int, random: Random, noise: float = 0.02, drift: float = 0.0) -> Observation:
    tokens = rate(cell) * exp(random.gauss(drift, noise))
    at_once = cell.load.concurrency or 4
    gap = 1e3 * at_once / tokens
    timeline = [round(tokens / 10 * exp(random.gauss(0, 0.1))) for _ in range(80)]
    if cell.fault:
        first = round(10 * cell.fault.at_s)
        timeline[first : first + 15] = [0] * 12 + [round(tokens / 30)] * 3
    spread = Spread(gap * 1.05, tuple(gap * f for f in (0.8, 0.93, 1, 1.06, 1.3, 1.7, 2.6)), 900)
    to_first = Spread(gap * 6, tuple(gap * f for f in (3, 4, 5, 7, 9, 11, 15)), 32)
    experts = [1 / (e + 1) ** (cell.skew.zipf or 0.2) for e in range(16)]
    return Observation(
        cell=cell.key,
        round=number,
        seed=1000 + number,
        started_at="2026-01-02T03:04:05+00:00",
        seconds=8.0,
        start_s=6.5,
        num_requests=32,
        num_failed=1 if cell.fault else 0,
        num_prompt_tokens=1024,
        num_tokens=round(8 * tokens),
        tokens_per_s=tokens,
        requests_per_s=tokens / 32,
        first_token_ms=to_first,
        per_token_ms=spread,
        gap_ms=spread,
        max_gap_ms=gap * 9,
        balancedness=0.8 if cell.workers else None,
        straggler_ms=0.4 if cell.workers > 1 else None,
        bytes_sent=1e6 * cell.workers,
        bytes_received=1e6 * cell.workers,
        num_steps=400,
        cpu_s={"coordinator": 6.0, "workers": 5.0 * cell.workers, "load": 0.7},
        memory_mb={"coordinator": 800.0, "workers": 300.0 * cell.workers},
        joules=None,
        load_average=0.3,
        split_ms={"rest": 0.55 * gap, "dispatch": 0.35 * gap, "combine": 0.1 * gap} if cell.workers else {},
        loads_LE=[[round(1000 * experts[(e * 5 + 3 * layer) % 16]) for e in range(16)] for layer in range(4)],
        timeline=timeline,
        tokens_sha=f"{cell.model}-{number}",
        errors={"UNAVAILABLE": 1} if cell.fault else {},
    )


def predict(cell: Cell, random: Random) -> Prediction:
    tokens = rate(cell) * exp(random.gauss(0.01, 0.05))
    gap = 1e3 * (cell.load.concurrency or 4) / tokens

    def around(value: float) -> Interval:
        return Interval(value, 0.9 * value, 1.1 * value)

    split = {"rest": 0.5 * gap, "dispatch": 0.4 * gap, "combine": 0.1 * gap} if cell.workers else {}
    return Prediction(cell.key, around(tokens), around(gap), around(5 * gap), "memory", split)


def make(
    folder: Path,
    cells: Sequence[Cell],
    rounds: int = 3,
    seed: int = 0,
    predicted: bool = True,
    bounds: dict[str, float] | None = None,
    noise: float = 0.02,
    name: str = "made",
) -> Results:
    random = Random(seed)
    manifest = Manifest(
        VERSION, name, {"name": name}, MACHINE, seed, rounds, {c.key: c for c in cells}, bounds or {}
    )
    results = Results.create(folder, manifest)
    results.observations = [
        observe(cell, number, random, noise) for number in range(rounds) for cell in cells
    ]
    observations, results.observations = results.observations, []
    for each in observations:
        results.add(each)
    if predicted:
        results.predicted([predict(cell, random) for cell in cells])
    return results


def wide() -> list[Cell]:
    """The reference experiment's: two families, three links, workers, concurrency."""
    return [
        Cell(
            model=model,
            load=Load(concurrency=at_once),
            workers=workers,
            link=link,
            where="namespaces",
        )
        for model in ("models/olmoe-small.json", "models/qwen3-moe-small.json")
        for link in LINKS
        for workers in (1, 2, 4)
        for at_once in (1, 8, 32)
    ]


def small() -> list[Cell]:
    return [
        Cell(model="olmoe-small.json", load=Load(concurrency=at_once), workers=workers)
        for workers in (0, 1, 2)
        for at_once in (1, 8)
    ]


def faulty() -> list[Cell]:
    plain = Cell(model="olmoe-small.json", load=Load(concurrency=8), workers=2, replicas=2)
    kill = Cell(
        model="olmoe-small.json", load=Load(concurrency=8), workers=2, replicas=2, fault=Fault("kill", 2.0)
    )
    slow = Cell(
        model="olmoe-small.json",
        load=Load(concurrency=8),
        workers=2,
        replicas=2,
        fault=Fault("slow", 3.0, seconds=2.0),
    )
    return [plain, kill, slow]


def skewed() -> list[Cell]:
    return [
        Cell(model="olmoe-small.json", load=Load(concurrency=8), workers=2, skew=Skew(zipf))
        for zipf in (None, 0.6, 1.2)
    ]


def single() -> list[Cell]:
    return [Cell(model="<script>alert(1)</script>$x_{&", load=Load(concurrency=4), workers=1)]
