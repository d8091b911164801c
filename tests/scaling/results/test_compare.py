"""Two runs side by side: what differs, what is noise, and what a second run reproduces."""

from pathlib import Path
from random import Random

import msgspec
import pytest

from moe_model.errors import ConfigError
from scaling.results import commands
from scaling.results.compare import compare, reproduced
from scaling.results.comparison_text import comparison_lines
from scaling.store import Results
from tests.scaling.results import made


def changed(folder: Path, like: Results, factor: float, gaps: float = 1.0) -> Results:
    """The same cells, another run: rates times a factor, and gaps times another."""
    found = Results.create(folder, like.manifest)
    random = Random(99)
    for key, cell in like.manifest.cells.items():
        for number in range(like.manifest.num_rounds):
            run = made.observe(cell, number, random)
            assert run.cell == key
            assert run.gap_ms is not None
            gap = msgspec.structs.replace(
                run.gap_ms, quantiles=tuple(gaps * each for each in run.gap_ms.quantiles)
            )
            found.add(msgspec.structs.replace(run, tokens_per_s=run.tokens_per_s * factor, gap_ms=gap))
    return found


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "same"), (0.7, "slower"), (1.4, "faster")])
def test_a_change_is_told_from_noise(small: Results, tmp_path: Path, factor: float, verdict: str) -> None:
    found = compare(small, changed(tmp_path / "b", small, factor), ("tokens_per_s",))
    assert len(found.rows) == len(small.manifest.cells)
    assert {row.verdict for row in found.rows} == {verdict}
    for row in found.rows:
        assert row.ratio is not None
        assert row.ratio.low <= factor * 1.05
        assert row.ratio.high >= factor * 0.95


def test_less_time_is_faster(small: Results, tmp_path: Path) -> None:
    other = changed(tmp_path / "b", small, 1.0, gaps=0.5)
    assert {row.verdict for row in compare(small, other, ("gap_ms",)).rows} == {"faster"}
    assert {row.verdict for row in compare(other, small, ("gap_ms",)).rows} == {"slower"}


def test_what_is_only_in_one_is_said(tmp_path: Path) -> None:
    cells = made.small()
    one, other = made.make(tmp_path / "a", cells[:4]), made.make(tmp_path / "b", cells[2:], seed=3)
    found = compare(one, other)
    assert found.only_one == [cell.label for cell in cells[:2]]
    assert found.only_other == [cell.label for cell in cells[4:]]
    assert {row.key for row in found.rows} == {cell.key for cell in cells[2:4]}
    text = "\n".join(comparison_lines(found))
    assert f"Only A has a result of 2 cells:\n- {cells[0].label}" in text
    assert "Equal tokens: 6 of 6 runs" in text


def test_tokens_that_differ_are_counted(small: Results, tmp_path: Path) -> None:
    other = changed(tmp_path / "b", small, 1.0)
    other.observations[0] = msgspec.structs.replace(other.observations[0], tokens_sha="other")
    found = compare(small, other)
    assert (found.num_equal_tokens, found.num_with_tokens) == (17, 18)


def test_a_second_run_of_the_same_is_reproduced(
    small: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(tmp_path / "b", small, 1.0)
    assert commands.compare(small.folder, other.folder, between_runs=True) == 0
    text = capsys.readouterr().out
    assert "| throughput  | tokens/s | 6 of 6" in text
    assert text.count("| yes") == 4


def test_a_second_run_that_is_slower_is_not(
    small: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(tmp_path / "b", small, 0.6)
    assert commands.compare(small.folder, other.folder, between_runs=True) == 1
    assert "throughput, outside:" in capsys.readouterr().out
    assert commands.compare(small.folder, other.folder) == 0
    [found] = reproduced(compare(small, other, ("tokens_per_s",)).rows)
    assert (found.share, found.met, len(found.missed)) == (0.0, False, 6)


def test_runs_without_a_common_cell_reproduce_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = made.make(tmp_path / "a", made.small()), made.make(tmp_path / "b", made.single())
    assert commands.compare(one.folder, other.folder, between_runs=True) == 1
    assert "Only B" in capsys.readouterr().out


def test_one_round_each_is_compared_without_a_verdict(tmp_path: Path) -> None:
    one = made.make(tmp_path / "a", made.small(), rounds=1)
    other = made.make(tmp_path / "b", made.small(), rounds=1, seed=2)
    assert {row.verdict for row in compare(one, other).rows} == {"unknown"}
    # Where one of them knows its noise, there is one.
    more = made.make(tmp_path / "c", made.small(), rounds=3, seed=2)
    assert {row.verdict for row in compare(one, more, ("tokens_per_s",)).rows} == {"same"}


@pytest.mark.parametrize("rounds", [1, 3])
def test_one_round_has_no_interval_to_reproduce(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rounds: int
) -> None:
    one = made.make(tmp_path / "a", made.small(), rounds=1)
    other = made.make(tmp_path / "b", made.small(), rounds=rounds, seed=2)
    assert commands.compare(one.folder, other.folder, between_runs=True) == 2
    out, err = capsys.readouterr()
    assert "0 of 0" not in out
    assert out.count("unknown") >= 4
    assert err.startswith("throughput, first token, per token, gap: A has one round of each cell")
    assert "needs at least two" in err


def test_rounds_that_gave_0_have_no_interval_to_reproduce(
    small: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = changed(tmp_path / "b", small, 0.0)
    assert commands.compare(nothing.folder, small.folder, between_runs=True) == 2
    assert capsys.readouterr().err == (
        "throughput: of each cell A has a round that gave 0, so there is no interval\n"
    )
    # What is known and is not met counts for more.
    slower = changed(tmp_path / "c", small, 1.0, gaps=2.0)
    assert commands.compare(nothing.folder, slower.folder, between_runs=True) == 1


def test_a_table_is_markdown_whatever_a_model_s_name_is(tmp_path: Path) -> None:
    cell = msgspec.structs.replace(made.single()[0], model="a|b\x1b[31m\nc")
    one, other = made.make(tmp_path / "a", [cell]), made.make(tmp_path / "b", [cell])
    lines = comparison_lines(compare(one, other, ("tokens_per_s",)))
    assert lines[2].startswith("| a\\|b?[31m?c, 1 workers")
    assert len({line.replace("\\|", "").count("|") for line in lines[:3]}) == 1


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no results of `expertmesh sweep`"):
        commands.compare(tmp_path, tmp_path)
