"""How far costs alone are off, on steps of models that nothing was fitted to."""

from collections.abc import Callable, Iterator
from statistics import median

from msgspec import Struct

from benchmarks.engine import Load
from scaling.machines import Machine
from scaling.probe import models, steps
from scaling.probe.fit import split
from scaling.shape import shape_of_config

Say = Callable[[str], None]
PARTS = ("step", "shared", "attention", "experts", "head", "calls")
_REPEATS = 4
# A step of many rows, one of few, and one of a long context.
_LOADS = ((1, 16), (8, 16), (32, 16), (4, 200))
_NEW_TOKENS = 17


class Checked(Struct, frozen=True):
    """One kind of step: seconds measured, and predicted by part."""

    model: str
    phase: str
    batch: int
    workers: int
    measured_s: float
    parts_s: dict[str, float]

    @property
    def predicted_s(self) -> float:
        return sum(self.parts_s.values())

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1


def check(machine: Machine, say: Say, workers: tuple[int, ...] = (0, 2)) -> Iterator[Checked]:
    """Measures here what is predicted of `machine`, which must be this one. Raises ValueError where nothing
    was measured of it."""
    for name, config in models.UNSEEN.items():
        shape = shape_of_config(config, name)
        with models.made(config) as checkpoint:
            for number in workers:
                say(f"steps of {name} with {number} workers")
                with steps.opened(checkpoint, number) as bench:
                    for batch, prompt in _LOADS:
                        load = Load(prompt, _NEW_TOKENS)
                        for each in bench.measure(name, batch, load, _REPEATS):
                            parts = split(machine, shape, each)
                            yield Checked(name, each.phase, batch, number, each.seconds, parts)


def check_lines(machine: Machine, say: Say) -> Iterator[str]:
    """A table of milliseconds; the errors' median and the worst of decode steps and of prompts' steps."""
    head = " ".join(f"{part:>9}" for part in PARTS)
    found = list(check(machine, say))
    names = f"{'model':<13} {'phase':<8} {'batch':>5} {'workers':>7} {'ms':>9} {'predicted':>9} {'off':>7}"
    yield f"{names}  {head}"
    for each in found:
        parts = " ".join(f"{1e3 * each.parts_s.get(part, 0.0):>9.3f}" for part in PARTS)
        yield (
            f"{each.model:<13} {each.phase:<8} {each.batch:>5} {each.workers:>7} "
            f"{1e3 * each.measured_s:>9.3f} {1e3 * each.predicted_s:>9.3f} "
            f"{100 * each.error:>+6.1f}%  {parts}"
        )
    for phase in ("decode", "prefill"):
        for number in (0, 2):
            errors = [abs(e.error) for e in found if e.phase == phase and e.workers == number]
            yield (
                f"{phase}, {number} workers: median {100 * median(errors):.1f} %, "
                f"worst {100 * max(errors):.1f} %"
            )
