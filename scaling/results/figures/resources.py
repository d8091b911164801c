"""What processors, memory and energy a cell took, by the role of the processes."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from scaling.observation import Observation
from scaling.results.aspects import shortened
from scaling.results.figures.drawing import FOREGROUND, Canvas, color
from scaling.results.figures.view import Part, View
from scaling.results.html import Field, figure, number, table

# As of latencies.
MAX_ROWS, MAX_FIGURES = 36, 2
TITLE = "Processor, memory and energy"
# Of the machine, not of a process.
ENERGY = "joules_per_token"
UNKNOWN = "The machine did not say what energy it took (RAPL, /sys/class/powercap)."
Roles = Mapping[str, float]


class Rows(NamedTuple):
    """Medians over the rounds: milliseconds of processors a token and megabytes by role, joules a token."""

    label: str
    cpu: Roles
    memory: Roles
    joules: float | None


def part(view: View) -> Part | None:
    """None where no run has any of it; a table where one cell has."""
    ran = view.results.of()
    rows = [Rows(view.words(s), *_by_role(ran[s.key]), s.median(ENERGY)) for s in view.summaries]
    rows = [row for row in rows if row.cpu or row.memory or row.joules is not None]
    if not rows:
        return None
    roles = list(dict.fromkeys(role for row in rows for role in (*row.cpu, *row.memory)))
    reading = (
        "By the role of the processes, medians over the rounds; docs/sweep.md says what each role is. Of "
        f"this machine alone, and not of workers on others. {_energy(rows)}"
    )
    if len(rows) == 1:
        return Part(TITLE, reading, _table(rows[0], roles))
    starts = range(0, len(rows), MAX_ROWS)[:MAX_FIGURES]
    return Part(TITLE, reading, "".join(figure(_drawn(rows[at : at + MAX_ROWS], roles)) for at in starts))


def _energy(rows: Sequence[Rows]) -> str:
    known = sum(row.joules is not None for row in rows)
    if not known:
        return UNKNOWN
    some = "" if known == len(rows) else f" It is known of {known} of {len(rows)} cells."
    return f"Energy is that of all packages of the machine.{some}"


def _by_role(observations: Sequence[Observation]) -> tuple[Roles, Roles]:
    cpu = [
        {role: 1e3 * seconds / each.num_tokens for role, seconds in each.cpu_s.items()}
        for each in observations
        if each.num_tokens
    ]
    return _medians(cpu), _medians([each.memory_mb for each in observations])


def _medians(found: Sequence[Roles]) -> Roles:
    roles = dict.fromkeys(role for each in found for role in each)
    return {role: median([each[role] for each in found if role in each]) for role in roles}


def _drawn(rows: Sequence[Rows], roles: Sequence[str]) -> str:
    with_energy = any(row.joules is not None for row in rows)
    with Canvas(1, 2 + with_energy, 1.4 + 0.24 * len(rows)) as canvas:
        axes = canvas.axes
        _stack(axes[0], [row.cpu for row in rows], roles, "processor, ms a token")
        _stack(axes[1], [row.memory for row in rows], roles, "memory, MB")
        if with_energy:
            axes[2].barh(
                range(len(rows)), [row.joules or 0.0 for row in rows], 0.6, color=FOREGROUND, alpha=0.6
            )
            axes[2].set_xlabel("energy, J a token")
        handles = [Patch(color=color(index)) for index in range(len(roles))]
        labels = [shortened(role) for role in roles]
        canvas.figure.legend(handles, labels, loc="outside upper left", ncols=8)
        for index, each in enumerate(axes):
            each.set_yticks(range(len(rows)), ["" if index else row.label for row in rows], fontsize=8)
            each.set_ylim(len(rows) - 0.4, -0.6)
            each.grid(visible=False, axis="y")
    return canvas.svg


def _stack(axes: Axes, rows: Sequence[Roles], roles: Sequence[str], title: str) -> None:
    starts = [0.0] * len(rows)
    for index, role in enumerate(roles):
        widths = [row.get(role, 0.0) for row in rows]
        axes.barh(range(len(rows)), widths, 0.6, starts, color=color(index), edgecolor="none")
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_xlabel(title)


def _table(row: Rows, roles: Sequence[str]) -> str:
    rows = [
        [Field(role), number(row.cpu.get(role)), number(row.memory.get(role)), Field("")] for role in roles
    ]
    rows.append([Field("the machine"), Field(""), Field(""), number(row.joules)])
    return table(("role", "processor, ms a token", "memory, MB", "energy, J a token"), rows)
