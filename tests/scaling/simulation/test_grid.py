"""Grids of settings, streams that go on, and the command."""

import csv
import json
from pathlib import Path

import pytest

from expertmesh.command_line import main
from moe_model.errors import ConfigError
from scaling.link import Link
from scaling.simulation.given import fault_of, link_of
from scaling.simulation.grid import Grid, pays, rows, write_csv
from scaling.simulation.steady import steady
from scaling.strict import read
from tests.scaling.simulation.settings import Plain, setting

GRID = """
name: small
models: [{model: MODEL}]
machine: {name: m, cores: 4, memory_gb: 0.3, gbytes_per_s: 20, gflops: 200, disk_mb_per_s: 500}
workers: [1, 4]
gbit: [1, 100]
delay_ms: [0.01, 5]
batch: [1, 8]
context: 32
dtype: float32
"""
MODEL = Path("demo/checkpoint").resolve()


def small(tmp_path: Path, text: str = GRID) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("MODEL", str(MODEL)))
    return path


def test_a_grid_has_a_row_for_each_point(tmp_path: Path) -> None:
    path = small(tmp_path)
    grid = read(path, Grid)
    found = list(rows(grid, path.parent))
    assert len(found) == grid.num_points == 16
    assert all(row.tokens_per_s > 0 and row.one_machine == "holds" for row in found)
    near, far = (next(r for r in found if r.delay_ms == d and r.workers == 4) for d in (0.01, 5))
    assert near.tokens_per_s > far.tokens_per_s
    assert far.binds.startswith("delay")
    said = pays(found)
    assert len(said) == 8
    assert all(each.from_batch is None for each in said if each.delay_ms == 5)
    write_csv(tmp_path / "rows.csv", found)
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 16


def test_memory_that_is_too_small_is_said(tmp_path: Path) -> None:
    path = small(tmp_path, GRID.replace("memory_gb: 0.3", "memory_gb: 0.02"))
    found = list(rows(read(path, Grid), path.parent))
    assert {row.one_machine for row in found} == {"swaps"}
    assert all(row.lacks == "worker 0" and row.binds == "memory" for row in found if row.workers == 1)
    assert all(not row.lacks for row in found if row.workers == 4)


def test_a_published_grid_is_read() -> None:
    grid = read(Path("scaling/examples/published.yaml"), Grid)
    assert grid.num_points == 576
    for model in grid.models:
        assert (Path("scaling/examples") / model.model).is_file()


def test_streams_that_go_on_take_a_step_each() -> None:
    found = steady(setting(Plain(of_step=1e-3, of_head=1e-3, of_experts=2e-3), 2, Link(gbit=1e9)), 8, 16)
    assert found.step_ms == pytest.approx(2 + 2 * 2, rel=1e-6)
    assert found.tokens_per_s == pytest.approx(8 / 6e-3, rel=1e-6)


def test_the_command_says_what_binds(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["simulate", str(MODEL), "--workers", "2", "--concurrency", "2", "--output-tokens", "4"]
    assert main([*command, "--requests", "4", "--prompt-tokens", "8", "--link", "1,5"]) == 0
    said = capsys.readouterr().out
    assert "16 tokens of 4 requests" in said
    assert "binds: delay" in said
    assert main([*command, "--steady", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steady"]["batch"] == 2
    assert main([*command, "--fail", "1@0.01", "--replicas", "2", "--requests", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"]["num_failed"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--link", "10"], "--link '10': expected GBIT,MS"),
        (["--link", "0,1"], "gbit"),
        (["--fail", "x"], "--fail 'x': expected WORKER@SECOND"),
        (["--fail", "burn:0@1"], "kind"),
        (["--fail", "7@1"], "there is no worker 7 among 2"),
        (["--trace", "zipf:x"], "--trace 'zipf:x'"),
        (["--machines", "none.json"], "none.json: No such file"),
        (["--plan", "none.json"], "plan none.json: No such file"),
        (["--grid", "grid.yaml"], "say one of MODEL and --grid"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(MODEL), "--workers", "2", *words]) != 0
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_grid_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--grid", "grid.yaml", "--workers", "2"]) != 0
    assert "--grid: its file says all; leave out what is said of workers" in capsys.readouterr().err


def test_faults_and_links_are_read() -> None:
    assert fault_of("slow:1@2.5").kind == "slow"
    assert (fault_of("3@1").worker, fault_of("3@1").kind) == (3, "kill")
    assert link_of("1,0.5,2") == Link(gbit=1, delay_ms=0.5, loss_percent=2)
    with pytest.raises(ConfigError):
        fault_of("1@-2")
