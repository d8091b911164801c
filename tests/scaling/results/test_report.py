"""The report: it asks the network for nothing, escapes what it shows, and has the figures of its data."""

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from scaling.cell import Cell, Host, Load
from scaling.link import Link
from scaling.results import commands
from scaling.results.aspects import varying, words
from scaling.results.columns import dimensions
from scaling.results.figures import resources
from scaling.results.figures.view import view_of
from scaling.results.intro import intro, sentences
from scaling.results.report import REPORT, report_html, write_report
from scaling.results.summary import summarise
from scaling.store import Results
from tests.scaling.results import made
from tests.scaling.results.conftest import HOSTILE

VOID = {"meta", "br", "img", "hr", "link", "input"}
LOADS = {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = text
        self.tags: list[str] = []
        self.open: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._look(attrs)

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in LOADS]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def page(everything: Results) -> Page:
    return Page(report_html(everything))


def test_every_tag_ends(page: Page) -> None:
    assert page.open == []


def test_it_asks_the_network_for_nothing(page: Page) -> None:
    assert page.references
    assert [each for each in page.references if not each.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!#)[^)]*\)|@import", page.text) == []
    assert "default-src 'none'" in page.text


def test_what_is_in_the_results_runs_nothing(page: Page) -> None:
    """A model, an experiment and a reason that would be tags."""
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.handlers == []
    text = "".join(page.texts)
    assert "<img src=http://x.invalid/>" in text
    assert "<b>no memory</b> & more" in text
    assert HOSTILE.removeprefix("models/").removesuffix(".json") in text


def test_each_figure_is_there(page: Page) -> None:
    assert page.headings == [
        "Prediction against measurement",
        "Throughput and efficiency against workers",
        "What the network cost",
        "Latency",
        "Where a step's time goes",
        "Processor, memory and energy",
        "Load of layers and experts",
        "Goodput under faults",
        "Cells",
        "Predictions, cell by cell",
        "What failed",
        "Machine and experiment",
    ]
    assert page.tags.count("svg") >= 8


def test_it_says_first_what_ran_where_and_how_sure(page: Page) -> None:
    text = "".join(page.texts)
    first = text[text.index("results of a sweep") : text.index("Prediction against")]
    for part in ("5 cells", "3 rounds", "A processor, 2 cores", "commit 0123456789ab", "How sure", "failed"):
        assert part in first


def with_resources(results: Results, joules: float | None) -> Results:
    results.observations = [
        msgspec.structs.replace(
            each,
            num_tokens=1000,
            cpu_s={"coordinator": 0.1, "engine": 7.5, "load": 0.5},
            memory_mb={"coordinator": 100.0, "engine": 650.0},
            joules=joules,
        )
        for each in results.observations
    ]
    return results


def test_processors_and_energy_of_one_cell_are_a_table_by_role(tmp_path: Path) -> None:
    results = with_resources(made.make(tmp_path / "a", made.single(), rounds=2), 31.0)
    part = resources.part(view_of(results, summarise(results)))
    assert part is not None
    assert re.findall(r"<td>(\w[\w ]*)</td>.*?</tr>", part.body) == [
        "coordinator",
        "engine",
        "load",
        "the machine",
    ]
    assert (
        '<td>engine</td><td class=n data-value="7.5">7.5</td><td class=n data-value="650.0">650<' in part.body
    )
    assert 'data-value="0.031"' in part.body
    assert resources.UNKNOWN not in part.reading


def test_a_machine_that_does_not_say_its_energy_is_said(tmp_path: Path) -> None:
    results = with_resources(made.make(tmp_path / "a", made.faulty()[:2], rounds=2), None)
    part = resources.part(view_of(results, summarise(results)))
    assert part is not None
    assert resources.UNKNOWN in part.reading
    assert "engine" in part.body
    assert "energy, J" not in part.body


def test_energy_is_drawn_where_a_machine_says_it(tmp_path: Path) -> None:
    results = with_resources(made.make(tmp_path / "a", made.faulty()[:2], rounds=2), 31.0)
    first = results.observations[0].cell
    results.observations = [
        msgspec.structs.replace(each, joules=None) if each.cell == first else each
        for each in results.observations
    ]
    part = resources.part(view_of(results, summarise(results)))
    assert part is not None
    assert "energy, J" in part.body
    assert "It is known of 1 of 2 cells." in part.reading


def test_a_figure_with_one_point_is_a_table(tmp_path: Path) -> None:
    results = made.make(tmp_path / "a", [msgspec.structs.replace(made.single()[0], workers=2)], rounds=1)
    results.observations = [msgspec.structs.replace(each, loads_LE=[]) for each in results.observations]
    found = Page(report_html(results))
    assert "svg" not in found.tags
    assert "Latency" in found.headings
    assert found.tags.count("table") >= 4


def test_results_without_a_run_are_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = made.make(tmp_path / "a", made.small(), rounds=0, predicted=False)
    assert commands.report(results.folder) == 0
    path = results.folder / REPORT
    assert capsys.readouterr().out == f"{path}\n"
    found = Page(path.read_text(encoding="utf-8"))
    assert found.headings == ["Machine and experiment"]


def test_a_sweep_that_is_not_finished_says_so(tmp_path: Path) -> None:
    results = made.make(tmp_path / "a", made.single(), rounds=2, predicted=False)
    results.manifest = msgspec.structs.replace(results.manifest, num_rounds=3)
    assert "1 cells have not run in all rounds" in intro(results, summarise(results))


def test_a_busy_machine_is_said(tmp_path: Path) -> None:
    results = made.make(tmp_path / "a", made.single(), rounds=2, predicted=False)
    assert "busy" not in intro(results, summarise(results))
    machine = {**made.MACHINE, "load_average": [5.5, 3.0, 1.0]}
    results.manifest = msgspec.structs.replace(results.manifest, machine=machine)
    assert "began while the machine was busy (a load average of 5.5 on 2" in intro(
        results, summarise(results)
    )


def test_what_was_changed_of_a_workload_is_said(tmp_path: Path) -> None:
    results = made.make(tmp_path / "a", made.small())
    note = "3 of 9 requests were cut to a context of 64 tokens"
    results.observations = [msgspec.structs.replace(each, notes=(note,)) for each in results.observations]
    found = dict(sentences(results, summarise(results)))
    assert found[f"{note} ({len(results.observations)} runs)."]


def test_cells_that_differ_in_the_kind_of_lengths_are_told_apart() -> None:
    cells = [
        Cell(model="m", load=Load(concurrency=1, lengths=each)) for each in ("exact", "uniform", "lognormal")
    ]
    assert varying(cells) == ["lengths"]
    slow = Host(1.0, link=Link(gbit=0.1))
    hosts = [
        Cell(model="m", load=Load(concurrency=1), workers=2, hosts=(each, Host(1.0)))
        for each in (slow, Host(1.0))
    ]
    assert [words(cell, ["hosts"]) for cell in hosts] == ["hosts 1 (0.1 Gbit/s):1", "hosts 1:1"]
    assert len({cell.label for cell in cells}) == 3
    assert [dimensions(cell)["lengths"] for cell in cells] == ["exact", "uniform", "lognormal"]


def test_a_prediction_that_misses_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = made.make(tmp_path / "a", made.single(), rounds=2, bounds={"throughput_worst": 1e-4})
    assert commands.report(results.folder) == 1
    assert "the worst error of throughput of 1 cells" in capsys.readouterr().out
    assert "The worst error of throughput" in write_report(results).read_text(encoding="utf-8")


@pytest.mark.parametrize("broken", [{"loads_LE": [[1, 2], [3]]}, {"timeline": [1]}, {"split_ms": {"a": 0.0}}])
def test_odd_observations_break_no_figure(tmp_path: Path, broken: dict[str, object]) -> None:
    results = made.make(tmp_path / "a", made.faulty()[1:2], rounds=2, predicted=False)
    results.observations = [msgspec.structs.replace(each, **broken) for each in results.observations]
    assert Page(report_html(results)).open == []
