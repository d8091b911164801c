"""Who coordinates, how many sequences at once, in which form and how many slices: settings are compared by
what their experts take at least, and the one that is chosen is planned whole."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from moe_model.errors import ConfigError
from moe_model.names import WeightForm
from scaling.machines import Machine
from scaling.planning.bound import bounds
from scaling.planning.drawn import draw_steps
from scaling.planning.evaluate import Evaluator
from scaling.planning.problem import LacksRoomError
from scaling.planning.setting import MEMORY_SHARE, Setting, kind_of
from scaling.planning.solve import Solution, solve
from scaling.planning.step import (
    DRAFT,
    Step,
    break_even,
    estimate,
    micro_batches,
    speculates,
    step_of,
)

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FORMS: tuple[WeightForm, ...] = ("model", "q8", "q4")
SLICES = (1, 2, 4, 8)
# A larger batch, or more slices, must bring so much more.
_MORE = 1.03
_LAYERS, _COORDINATORS = 4, 8
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. None: to be chosen; of `max_gap_ms`, no limit. `survive`: so many machines may be
    lost at once; `coordinator_only`: it gets no worker."""

    objective: str = "throughput"
    max_gap_ms: float | None = None
    survive: int | None = None
    concurrency: int | None = None
    form: WeightForm | None = "model"
    num_slices: int | None = 1
    coordinator: str | None = None
    coordinator_only: bool = False
    seconds: float = 10.0
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """`notes`: what was not done as asked, or is to be known, a sentence each."""

    setting: Setting
    solution: Solution
    step: Step
    micro_batches: str
    speculate: str
    break_even: float
    notes: list[str] = field(default_factory=list)

    @property
    def survives(self) -> int:
        return self.setting.num_copies - 1


def plan(base: Setting, wish: Wish, say: Say = lambda _: None) -> Plan:
    """`base`: what is given; its coordinator, rows, copies, form and slices are chosen by the wish. Raises
    ConfigError, what is missing, where no plan can be."""
    setting, notes = choose(base, wish, say)
    say(f"placing {setting.shape.num_experts} experts on {len(setting.workers)} machines")
    while True:
        solution = solve(setting.problem(), seconds=wish.seconds, seed=wish.seed)
        found = whole(setting, solution, wish, notes)
        fewer = [rows for rows in BATCHES if rows < setting.num_rows]
        if _is_in_gap(found.step, wish) or wish.concurrency is not None or not fewer:
            return found
        # An estimate knows less than a placement.
        setting = setting.with_(num_rows=_most_in_gap(setting, solution, fewer, wish))
        say(f"placing them for {setting.num_rows} sequences: with more the gap is too long")


def whole(setting: Setting, solution: Solution, wish: Wish, notes: Iterable[str] = ()) -> Plan:
    """The plan of what was placed: its steps, and what follows from them."""
    step = predicted(setting, solution, wish.seed)
    parts, speculation, share = "1", "off", 0.0
    if setting.num_rows > 1:
        half = predicted(setting.with_(num_rows=setting.num_rows // 2), solution, wish.seed)
        parts = micro_batches(step, half, len(setting.shape.moe_layers))[0]
    more = predicted(setting.with_(num_rows=setting.num_rows * (1 + DRAFT)), solution, wish.seed)
    share = break_even(setting, step, more)
    speculation = f"ngram:{DRAFT}" if speculates(share) else "off"
    return Plan(setting, solution, step, parts, speculation, share, [*notes, *_gap_notes(step, wish)])


def _most_in_gap(setting: Setting, solution: Solution, batches: Iterable[int], wish: Wish) -> int:
    """The largest of the batches whose gap is as asked, with the placement as it is; else the smallest."""
    allowed = [
        rows
        for rows in batches
        if _is_in_gap(predicted(setting.with_(num_rows=rows), solution, wish.seed), wish)
    ]
    return max(allowed, default=min(batches))


def predicted(setting: Setting, solution: Solution, seed: int) -> Step:
    """A step of `setting.num_rows` sequences with the placement as it is, by other draws than it was made
    for."""
    problem = setting.problem()
    num_steps = max(2, min(8, 60_000 // (problem.num_layers * problem.num_modules)))
    drawn = draw_steps(problem, num_steps, seed + 1)
    return step_of(setting, Evaluator(problem, drawn, solution.costs, solution.fixed_rows), solution.holders)


def choose(base: Setting, wish: Wish, say: Say = lambda _: None) -> tuple[Setting, list[str]]:
    """The setting that is best by estimate, and notes. Raises ConfigError."""
    notes: list[str] = []
    form = _form(base, wish, notes)
    copies = _copies(base.with_(form=form), wish, notes)
    base = base.with_(form=form, num_copies=copies, holds_too=not wish.coordinator_only)
    settings = []
    for coordinator in _coordinators(base, wish):
        for num_slices in SLICES if wish.num_slices is None else (wish.num_slices,):
            at = base.with_(coordinator=coordinator, num_slices=num_slices)
            if base.config.d_ff % num_slices == 0:
                say(f"comparing batches: {coordinator} coordinates, {num_slices} slices")
                settings += _by_batch(at, wish)
    if not settings:
        raise _why_none(base, wish)
    best = _best(settings, wish)
    if best.num_slices > 1 and wish.num_slices is None:
        notes.append(
            f"experts in {best.num_slices} slices: tokens differ in rounding from those of whole experts"
        )
    return best, notes


def _best(settings: list[tuple[Setting, Step]], wish: Wish) -> Setting:
    """Of nearly equal ones that with fewer slices and rows."""
    allowed = [each for each in settings if _is_in_gap(each[1], wish)] or [
        min(settings, key=lambda each: each[1].seconds)
    ]
    if wish.objective == "latency":
        least = min(step.seconds for _, step in allowed)
        fit = [each for each in allowed if each[1].seconds <= _MORE * least]
    else:
        most = max(step.tokens_per_s for _, step in allowed)
        fit = [each for each in allowed if each[1].tokens_per_s * _MORE >= most]
    return min(fit, key=lambda each: (each[0].num_slices, each[0].num_rows))[0]


def _is_in_gap(step: Step, wish: Wish) -> bool:
    return wish.max_gap_ms is None or 1e3 * step.seconds <= wish.max_gap_ms


def _gap_notes(step: Step, wish: Wish) -> list[str]:
    if _is_in_gap(step, wish):
        return []
    return [f"the gap is {1e3 * step.seconds:.3g} ms, above the {wish.max_gap_ms:g} ms that were asked for"]


def _by_batch(setting: Setting, wish: Wish) -> list[tuple[Setting, Step]]:
    """With each batch that fits; a batch beyond one that fails fails too."""
    fixed = wish.concurrency or (1 if wish.objective == "latency" else None)
    found = []
    for num_rows in BATCHES if fixed is None else (fixed,):
        at = setting.with_(num_rows=num_rows)
        try:
            at.check_coordinator()
            problem = at.problem()
            problem.check()
        except ConfigError:
            break
        # A few layers stand for all.
        layers = np.unique(np.linspace(0, problem.num_layers - 1, _LAYERS).astype(int))
        experts = float(bounds(problem.with_(chance_LE=problem.chance_LE[layers])).mean())
        found.append((at, estimate(at, experts * problem.num_layers)))
    return found


def _coordinators(base: Setting, wish: Wish) -> list[str]:
    """One of each kind of machines, the quickest at what is no expert first."""
    if wish.coordinator is not None:
        return [base.machines.named(wish.coordinator).name]
    kinds: dict[tuple[object, ...], Machine] = {}
    for machine in base.machines.machines:
        key = (kind_of(machine), machine.memory_gb, _reach(base, machine.name))
        kinds.setdefault(key, machine)
    costs = {
        m.name: base.costs(m).shared_layer(0, 8, 8 * base.context, 8 * base.context) for m in kinds.values()
    }
    return sorted(costs, key=lambda name: costs[name])[:_COORDINATORS]


def _reach(base: Setting, name: str) -> tuple[float, float]:
    """How quick the paths of a machine are: the fastest, and the longest way. What no path names is alike."""
    paths = [path for path in base.machines.paths if name in path.between]
    return max((p.gbit for p in paths), default=0.0), max((p.round_trip_us for p in paths), default=0.0)


def _form(base: Setting, wish: Wish, notes: list[str]) -> WeightForm:
    """The first form in which as many copies as are asked for fit; else the smallest."""
    if wish.form is not None:
        return wish.form
    copies = 1 + (wish.survive if wish.survive is not None else 1)
    for form in FORMS:
        if not _lacking(base.with_(form=form, num_copies=copies), wish):
            if form != "model":
                notes.append(f"experts are rounded to {form}, so that they fit: outputs are not exact")
            return form
    notes.append(f"experts are rounded to {FORMS[-1]}, the smallest form: outputs are not exact")
    return FORMS[-1]


def _copies(base: Setting, wish: Wish, notes: list[str]) -> int:
    if wish.survive is not None:
        return 1 + wish.survive
    if len(base.machines.machines) - wish.coordinator_only < 2:
        notes.append("one machine holds all experts: its loss is not survived")
        return 1
    if lacking := _lacking(base.with_(num_copies=2), wish):
        if not _lacking(base.with_(num_copies=1), wish):
            notes.append(
                "no loss of a machine is survived: a second copy of each expert needs "
                f"{_gigabytes(base, lacking)}"
            )
        return 1
    return 2


def _lacking(setting: Setting, wish: Wish) -> int:
    """How many modules have no place, with the smallest batch, and the coordinator that is named, if any, or
    the first that has room for itself."""
    names = [wish.coordinator] if wish.coordinator else [m.name for m in setting.machines.machines]
    at = setting.with_(num_rows=wish.concurrency or 1, holds_too=not wish.coordinator_only)
    lacks = []
    for name in names[:_COORDINATORS]:
        one = at.with_(coordinator=name)
        num = setting.shape.num_experts * setting.num_slices
        room = sum(min(one.room(machine), num) for machine in one.workers)
        lacks.append(max(0, setting.num_copies * num - room))
    return min(lacks)


def _gigabytes(setting: Setting, num_modules: int) -> str:
    return f"{num_modules * setting.module_bytes / MEMORY_SHARE / 1e9:.1f} GB more of memory"


def _why_none(base: Setting, wish: Wish) -> ConfigError:
    """What is missing."""
    at = base.with_(num_rows=wish.concurrency or 1)
    errors: list[ConfigError] = []
    for name in _coordinators(base, wish):
        one = at.with_(coordinator=name)
        try:
            one.check_coordinator()
            one.problem().check()
        except LacksRoomError as error:
            what = f"{one.num_copies} copies of " if one.num_copies > 1 else ""
            return ConfigError(
                f"{what}{one.shape.name}'s experts need {_gigabytes(one, error.num_lacking)}: add machines"
                + (", or ask to survive fewer losses (--survive)" if one.num_copies > 1 else "")
                + (", or let experts be rounded (--expert-dtype auto)" if one.form == "model" else "")
            )
        except ConfigError as error:
            errors.append(error)
    return errors[0] if errors else ConfigError("no batch, coordinator and number of slices fit")
