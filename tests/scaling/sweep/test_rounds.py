"""Which runs are left, in which order, and what becomes of one that fails."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.cell import Cell, Fault, Load
from scaling.observation import Observation
from scaling.store import Results
from scaling.sweep import rounds
from scaling.sweep.experiment import Experiment, Plan
from scaling.sweep.manifest import begun
from scaling.sweep.one_run import Order
from scaling.sweep.rounds import Heard, Rounds, done_of, reason_of, turns, workload_seed
from scaling.topology import Running

CELLS = {
    cell.key: cell
    for workers in (1, 2, 3)
    for concurrency in (1, 8)
    for cell in [Cell(model="m", workers=workers, load=Load(concurrency=concurrency))]
}
SOME = st.sets(st.tuples(st.sampled_from(sorted(CELLS)), st.integers(0, 2)))


def runs(seed: int, done: set[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(cell.key, turn.number) for turn in turns(CELLS, 3, seed, done) for cell in turn.cells]


@given(st.integers(0, 99), SOME)
def test_each_run_once_and_in_the_order_that_it_would_have_had(seed: int, done: set[tuple[str, int]]) -> None:
    whole = runs(seed, set())
    assert sorted(whole) == sorted((key, number) for key in CELLS for number in range(3))
    assert runs(seed, done) == [run for run in whole if run not in done]


def test_rounds_follow_each_other_and_have_orders_of_their_own() -> None:
    whole = runs(3, set())
    assert [number for _, number in whole] == [0] * 6 + [1] * 6 + [2] * 6
    orders = {tuple(key for key, number in whole if number == n) for n in range(3)}
    assert len(orders) > 1
    assert runs(3, set()) == whole
    assert runs(4, set()) != whole


def test_a_server_serves_all_loads_of_a_round() -> None:
    for turn in turns(CELLS, 2, 0, set()):
        assert len({cell.workers for cell in turn.cells}) == 1
        assert len(turn.cells) == 2


def test_a_server_with_a_fault_serves_no_other_cell() -> None:
    broken = Cell(model="m", workers=1, load=Load(concurrency=1), fault=Fault("kill"))
    other = Cell(model="m", workers=1, load=Load(concurrency=8), fault=Fault("kill"))
    found = list(turns({cell.key: cell for cell in (broken, other)}, 1, 0, set()))
    assert [len(turn.cells) for turn in found] == [1, 1]


def test_seeds_are_those_of_the_requests() -> None:
    one = Cell(model="m", workers=1, load=Load(concurrency=1))
    same = Cell(model="m", workers=2, wire_dtype="bfloat16", load=Load(concurrency=1))
    other = Cell(model="m", workers=1, load=Load(concurrency=2))
    assert workload_seed(one, 5, 0) == workload_seed(same, 5, 0) == 795747397
    assert len({workload_seed(one, 5, 0), workload_seed(one, 5, 1), workload_seed(one, 6, 0)}) == 3
    assert workload_seed(other, 5, 0) != workload_seed(one, 5, 0)


class Place:
    """A topology whose servers start, or do not; it counts them."""

    def __init__(self, *broken: int) -> None:
        self.broken, self.num_started, self.num_ended = broken, 0, 0

    def missing(self, cell: Cell) -> str:
        return ""

    @contextmanager
    def start(self, cell: Cell, checkpoint: Path, arguments: Sequence[str], log: Path) -> Iterator[Running]:
        if cell.workers in self.broken:
            raise RuntimeError(f"no place for\n{cell.workers} workers")
        self.num_started += 1
        try:
            yield None  # type: ignore[misc] # run_cell, which would use it, is another one here
        finally:
            self.num_ended += 1


def observed(order: Order) -> Observation:
    return Observation(order.cell.key, order.number, order.seed, "now", 1.0, start_s=order.start_s)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return begun(tmp_path / "out", plan(tmp_path), 1, is_resumed=False)


def plan(tmp_path: Path) -> Plan:
    (tmp_path / "m").mkdir(exist_ok=True)
    return Plan(Experiment("x"), CELLS, tmp_path)


def carry_out(results: Results, tmp_path: Path, place: Place) -> list[Observation]:
    heard: list[Observation] = []
    tells = Heard(lambda turn: None, lambda cell, number: None, heard.append)
    found = turns(CELLS, 1, 0, done_of(results.observations))
    Rounds(plan(tmp_path), results, {"local": place}, tmp_path, tells).run(found)
    return heard


def test_a_failure_is_recorded_and_the_rest_goes_on(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_cell(server: Running, checkpoint: Path, order: Order) -> Observation:
        if order.cell.load.concurrency == 8 and order.cell.workers == 1:
            raise RuntimeError("no token came")
        return observed(order)

    monkeypatch.setattr(rounds, "run_cell", run_cell)
    place = Place(2)
    heard = carry_out(results, tmp_path, place)
    failed = {(CELLS[o.cell].workers, CELLS[o.cell].load.concurrency): o.failed for o in heard if o.failed}
    assert failed == {
        (1, 8): "no token came",
        (2, 1): "no place for 2 workers",
        (2, 8): "no place for 2 workers",
    }
    assert (len(heard), place.num_started, place.num_ended) == (6, 2, 2)
    assert Results.open(results.folder).observations == heard

    # Going on, what failed runs again, and nothing else does.
    monkeypatch.setattr(rounds, "run_cell", lambda server, checkpoint, order: observed(order))
    again = carry_out(results, tmp_path, Place())
    assert sorted((CELLS[o.cell].workers, CELLS[o.cell].load.concurrency or 0) for o in again) == [
        *((1, 8), (2, 1), (2, 8)),
    ]
    assert not any(each.failed for each in again)


def test_the_probe_runs_before_each_round_and_after_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    measured = Plan(Experiment("x", machines="measured"), CELLS, tmp_path)
    results = begun(tmp_path / "out", measured, 2, is_resumed=False)
    said: list[tuple[str, int]] = []
    monkeypatch.setattr(rounds, "run_cell", lambda server, checkpoint, order: observed(order))
    monkeypatch.setattr(rounds, "measure_pass", lambda folder, number: said.append(("probe", number)))
    monkeypatch.setattr(rounds, "has_pass", lambda folder, number: ("probe", number) in said)
    tells = Heard(
        lambda turn: None,
        lambda cell, number: said.append(("cell", number)),
        lambda observation: None,
        lambda number: said.append(("said", number)),
    )
    Rounds(measured, results, {"local": Place()}, tmp_path, tells).run(turns(CELLS, 2, 0, set()))
    each = [[("said", number), ("probe", number)] for number in range(3)]
    assert said == [*each[0], *[("cell", 0)] * 6, *each[1], *[("cell", 1)] * 6, *each[2]]


def test_a_probe_that_fails_is_not_tried_again_in_its_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    measured = Plan(Experiment("x", machines="measured"), CELLS, tmp_path)
    results = begun(tmp_path / "out", measured, 2, is_resumed=False)
    tried: list[int] = []
    monkeypatch.setattr(rounds, "run_cell", lambda server, checkpoint, order: observed(order))
    monkeypatch.setattr(rounds, "measure_pass", lambda folder, number: tried.append(number))
    tells = Heard(lambda turn: None, lambda cell, number: None, lambda observation: None)
    Rounds(measured, results, {"local": Place()}, tmp_path, tells).run(turns(CELLS, 2, 0, set()))
    assert tried == [0, 1, 2]


def test_a_command_that_does_not_end_fails_its_cell(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_cell(server: Running, checkpoint: Path, order: Order) -> Observation:
        raise subprocess.TimeoutExpired("iptables", 30)

    monkeypatch.setattr(rounds, "run_cell", run_cell)
    assert len(carry_out(results, tmp_path, Place())) == 6


def test_an_interrupt_leaves_no_trace_of_its_run(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_cell(server: Running, checkpoint: Path, order: Order) -> Observation:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "run_cell", run_cell)
    place = Place()
    with pytest.raises(KeyboardInterrupt):
        carry_out(results, tmp_path, place)
    assert (place.num_started, place.num_ended) == (1, 1)
    assert Results.open(results.folder).observations == []


def test_a_model_that_is_not_there_fails_its_cells(results: Results, tmp_path: Path) -> None:
    (tmp_path / "m").rmdir()
    heard: list[Observation] = []
    tells = Heard(lambda turn: None, lambda cell, number: None, heard.append)
    found = turns(CELLS, 1, 0, set())
    absent = Plan(Experiment("x"), CELLS, tmp_path)
    Rounds(absent, results, {"local": Place()}, tmp_path, tells).run(found)
    assert len(heard) == 6
    assert all("neither a checkpoint nor a config.json" in (each.failed or "") for each in heard)


def test_a_long_reason_keeps_both_ends() -> None:
    said = reason_of(RuntimeError("begin " + "x" * 5000 + " end"))
    assert said.startswith("begin")
    assert said.endswith("end")
    assert len(said) < 600
