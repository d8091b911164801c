"""What figures are made of, and what they become."""

from collections.abc import Sequence
from typing import NamedTuple

from scaling.results.aspects import varying, words
from scaling.results.summary import CellSummary
from scaling.store import Results

# Of one kind: more would not be looked at; the tables have all.
MAX_PANELS = 12


class View(NamedTuple):
    """Results, summaries of the cells that ran, and the names of what differs among them."""

    results: Results
    summaries: Sequence[CellSummary]
    names: Sequence[str]

    def words(self, summary: CellSummary, without: Sequence[str] = ()) -> str:
        """What tells this cell from the others."""
        found = words(summary.cell, [name for name in self.names if name not in without])
        return found or words(
            summary.cell, [name for name in ("model", "workers", "load") if name not in without]
        )

    def others(self, *without: str) -> list[str]:
        return [name for name in self.names if name not in without]


class Part(NamedTuple):
    """A part of the report. `reading`: how to read it. `body`: HTML, in which everything is escaped."""

    title: str
    reading: str
    body: str


def view_of(results: Results, summaries: Sequence[CellSummary]) -> View:
    ran = [summary for summary in summaries if summary.num_rounds]
    return View(results, ran, varying(summary.cell for summary in ran))
