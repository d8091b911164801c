"""What a report says first: what was run, on what, and how sure its figures are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from scaling.results.aspects import ASPECTS, varying, words
from scaling.results.checks import misses_of
from scaling.results.html import escape
from scaling.results.summary import CellSummary
from scaling.store import Results

# More load than this share of the cores before the first run is said.
BUSY = 0.5
MOST_VALUES = 8
# What is said where all cells have it alike.
ALIKE = ("model", "dtype", "workers", "where", "load", "lengths")


def sentences(results: Results, summaries: Sequence[CellSummary]) -> list[tuple[str, bool]]:
    """Each with whether it is a warning."""
    found = [(_what(results, summaries), False), (_where(results.manifest.machine), False)]
    found += [(text, False) for text in _sure(summaries)]
    failed = [summary for summary in summaries if summary.failures]
    if failed:
        num = sum(len(summary.failures) for summary in failed)
        found.append((f"{num} runs of {len(failed)} cells failed; their reasons are below.", True))
    unfinished = [s for s in summaries if s.num_rounds + len(s.failures) < results.manifest.num_rounds]
    if unfinished:
        found.append(
            (f"{len(unfinished)} cells have not run in all rounds: the sweep is not finished.", True)
        )
    found += [(text, True) for text in _busy(results)]
    notes = Counter(note for each in results.observations for note in each.notes)
    found += [(f"{note} ({_num(num, 'run')}).", True) for note, num in notes.most_common(MOST_VALUES)]
    found += [
        (text[0].upper() + text[1:] + ".", True) for text in misses_of(results.manifest.bounds, summaries)
    ]
    return found


def intro(results: Results, summaries: Sequence[CellSummary]) -> str:
    items = sentences(results, summaries)
    marks = {True: " class=bad", False: ""}
    return "<ul>" + "".join(f"<li{marks[bad]}>{escape(text)}</li>" for text, bad in items) + "</ul>"


def _what(results: Results, summaries: Sequence[CellSummary]) -> str:
    manifest = results.manifest
    cells = [summary.cell for summary in summaries]
    names = varying(cells)
    text = (
        f"{_num(len(cells), 'cell')}, each in {_num(manifest.num_rounds, 'round')}, interleaved: "
        f"{_num(len(results.observations), 'run')}, seed {manifest.seed}."
    )
    for name in names:
        values = list(dict.fromkeys(ASPECTS[name](cell) or "none" for cell in cells))
        more = f" and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
        text += f" {name.capitalize()}: {', '.join(values[:MOST_VALUES])}{more}."
    alike = [name for name in ALIKE if name not in names]
    return text + (f" All: {words(cells[0], alike)}." if cells and alike else "")


def _num(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _where(machine: Mapping[str, Any]) -> str:
    memory = machine.get("memory_bytes")
    versions = machine.get("versions")
    parts = [str(machine.get("cpu") or "an unknown processor"), f"{machine.get('cores', '?')} cores"]
    parts += [f"{memory / 2**30:.1f} GiB"] if isinstance(memory, int | float) else []
    parts += [str(machine["gpu"])] if machine.get("gpu") else []
    parts += [str(machine[name]) for name in ("kernel",) if machine.get(name)]
    parts += [f"{name} {v}" for name, v in versions.items() if v] if isinstance(versions, dict) else []
    commit = machine.get("commit")
    changed = ", with changes" if machine.get("dirty") else ""
    parts += [f"commit {str(commit)[:12]}{changed}"] if commit else ["no commit"]
    return "On " + ", ".join(parts) + f"; begun {machine.get('date', 'at an unknown time')}."


def _sure(summaries: Sequence[CellSummary]) -> list[str]:
    estimates = [s.estimates["tokens_per_s"] for s in summaries if "tokens_per_s" in s.estimates]
    known = [e for e in estimates if e.repeat is not None and e.variance is not None and e.median > 0]
    if not known:
        return ["No cell ran in two rounds: how sure these figures are is not known."] if estimates else []
    halves = [100 * (e.repeat.high / e.median - 1) for e in known if e.repeat is not None]
    shared = [100 * e.variance.shared**0.5 for e in known if e.variance is not None]
    text = (
        f"How sure: another run's median throughput is expected within ± {median(halves):.1f} % of a cell's "
        f"(the middle one of {_num(len(halves), 'cell')}; at most ± {max(halves):.1f} %)."
    )
    if len(known) > 1:
        text += f" From round to round the whole machine drifted by {shared[0]:.1f} % (standard deviation), "
        text += "which is in it."
    return [text]


def _busy(results: Results) -> list[str]:
    """As the sweep began: later the load is its own."""
    cores, load = (results.manifest.machine.get(name) for name in ("cores", "load_average"))
    if not isinstance(cores, int | float) or not isinstance(load, list) or not load:
        return []
    if not isinstance(load[0], int | float) or load[0] <= BUSY * cores:
        return []
    return [
        f"The sweep began while the machine was busy (a load average of {load[0]:.1f} on {cores:g} cores): "
        f"what else ran is in its figures."
    ]
