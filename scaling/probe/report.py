"""Machines, for people: what was measured, how well it explains itself, and what bounds a model."""

from collections.abc import Iterator, Sequence
from statistics import median

from scaling.costs.choose import costs_of
from scaling.costs.forms import weight_bytes
from scaling.costs.model_costs import cache_bytes
from scaling.machines import FittedStep, Machine, Machines, Overheads
from scaling.shape import Shape

# A fit that misses its own steps by more is no ground for predictions.
GOOD_FIT = 0.08


def lines(machines: Machines) -> Iterator[str]:
    """Of all machines."""
    for machine in machines.machines:
        yield from _machine(machine)
    for path in machines.paths:
        one, other = path.between
        yield f"{one} - {other}: {path.gbit:.2f} Gbit/s, {path.round_trip_us:.0f} us there and back"


def _machine(machine: Machine) -> Iterator[str]:
    disk = "" if machine.disk_mb_per_s is None else f", disk {machine.disk_mb_per_s:.0f} MB/s"
    yield (
        f"{machine.name}: {machine.cores:g} cores ({machine.kernels}), {machine.memory_gb:g} GB, "
        f"{machine.gbytes_per_s:.1f} GB/s, {machine.gflops:.0f} GFLOP/s{disk}"
    )
    yield from _rates(machine)
    yield "  beside products: " + _overheads(machine.overheads)
    if machine.fit:
        yield from _fit(machine.fit)


def _rates(machine: Machine) -> Iterator[str]:
    """Of the largest experts that were measured; a line of each form."""
    for form in dict.fromkeys(rate.form for rate in machine.rates):
        ours = [r for r in machine.rates if r.form == form and r.kind == "expert" and r.threads != 1]
        if not ours:
            continue
        largest = max(rate.matrix_kb for rate in ours)
        shown = sorted((r for r in ours if r.matrix_kb == largest), key=lambda rate: rate.rows)
        few, many = shown[0], shown[-1]
        yield (
            f"  experts in {form}, {largest / 1024:.1f} MiB each: {few.gbytes_per_s:.1f} GB/s at {few.rows} "
            f"row, {many.gflops:.0f} GFLOP/s at {many.rows} rows"
        )


def _overheads(found: Overheads) -> str:
    return (
        f"step {found.step_us:.0f} us, layer {found.layer_us:.1f} us, row {found.row_us:.1f} us, "
        f"tokens out {found.publish_us:.0f} us and {found.token_us:.0f} us each, "
        f"call {found.call_us:.0f} us, worker {found.worker_us:.0f} us, "
        f"byte {found.byte_ns:.2f} ns; products x {found.kernels:.2f}, x {found.cached:.2f} where cached"
    )


def _fit(fit: Sequence[FittedStep]) -> Iterator[str]:
    yield f"  {'model':<20} {'phase':<8} {'batch':>5} {'workers':>7} {'ms':>9} {'fitted':>9} {'error':>7}"
    for each in fit:
        yield (
            f"  {each.model:<20} {each.phase:<8} {each.batch:>5} {each.workers:>7} {each.measured_ms:>9.3f} "
            f"{each.fitted_ms:>9.3f} {100 * each.error:>+6.1f}%"
        )
    errors = sorted(abs(each.error) for each in fit)
    worst, middle = errors[-1], median(errors)
    yield f"  its own steps within {100 * middle:.1f} % (median), {100 * worst:.1f} % (worst)"
    if middle > GOOD_FIT:
        yield "  that is too far off for predictions: run it again when the machine has nothing else to do"


def bound_lines(machine: Machine, shape: Shape, form: str = "bfloat16") -> Iterator[str]:
    """What a decode step of a model waits for on this machine, at a few batches: rows that choose experts
    evenly, contexts of 256 positions."""
    costs, weight = costs_of(machine, shape, form=form), weight_bytes(form)
    total_gb = 1e-9 * shape.total_params * weight
    fits = "fits" if total_gb < machine.memory_gb else "does not fit"
    cache_kb = cache_bytes(shape, form) / 1024
    yield (
        f"{shape.name} on {machine.name}: {total_gb:.1f} GB in {form}, {fits} in {machine.memory_gb:g} GB; "
        f"{cache_kb:.0f} KiB of cache a token"
    )
    for batch in (1, 8, 32, 128):
        touched = shape.n_experts * (1 - (1 - shape.top_k / shape.n_experts) ** batch)
        params = shape.shared_params + len(shape.moe_layers) * touched * shape.expert_params
        active = shape.shared_params + len(shape.moe_layers) * shape.top_k * shape.expert_params
        read = params * weight / (1e9 * machine.gbytes_per_s)
        multiply = 2 * active * batch / (1e9 * machine.gflops)
        layers = range(shape.n_layers)
        rows_E = [max(1, round(batch * shape.top_k / touched))] * max(1, round(touched))
        parts = {
            "experts": len(shape.moe_layers) * costs.experts(rows_E),
            "the shared part": sum(costs.shared_layer(n, batch, 256 * batch, 256 * batch) for n in layers)
            + costs.head(batch),
            "the engine's own work": costs.step(batch, batch),
            "tokens on their way out": costs.front(batch),
        }
        seconds = sum(parts.values())
        most = max(parts, key=lambda name: parts[name])
        by = "memory" if read > multiply else "operations"
        yield (
            f"  batch {batch:>3}: {1e3 * seconds:>9.2f} ms, {batch / seconds:>7.0f} tokens/s; mostly {most} "
            f"({100 * parts[most] / seconds:.0f} %), bound by {by} "
            f"(at best {1e3 * max(read, multiply):.2f} ms)"
        )
