"""What is measured is measured: small plans, real kernels, real engines, a real file."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import ray

from benchmarks.engine import Load
from benchmarks.physics import Machine as Physics
from coordinator.commands.probe_arguments import ProbeArguments
from expert_workers.cluster.ray_cluster import RayCluster
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from scaling.commands import probe
from scaling.machines import FittedStep, Machine, Machines, Overheads, ProductRate
from scaling.machines import Path as Way
from scaling.probe import kernels, local, models, network, passes, steps
from scaling.probe.disk import read_mb_per_s
from scaling.probe.link_bench import LARGE, SMALL, Served, round_trips
from scaling.probe.network import path_of, with_paths
from scaling.probe.report import bound_lines, lines
from scaling.probe.service import Service
from scaling.probe.timing import quantile, seconds_each
from scaling.shape import shape_of, shape_of_config
from scaling.strict import read

TINY = ModelConfig(d_model=64, n_heads=4, n_layers=2, d_ff=64, n_experts=4, top_k=2, vocab_size=4096)
PLAN = kernels.Plan(
    *(("float32", "bfloat16"), (1, 8), ((64, 64), (64, 128)), ((64, 64), (128, 64)), (1,), 1e-3, 1 << 18, 0)
)
LOADS = ((1, Load(4, 3)), (3, Load(4, 3)))
RATE = ProductRate("bfloat16", 1, 20, 10)


def silent(what: str) -> None:
    assert what


def test_calls_take_turns() -> None:
    seen: list[int] = []
    assert seconds_each([lambda: seen.append(0), lambda: seen.append(1), lambda: seen.append(2)], 1e-3) >= 0
    assert seen[1:7] == [0, 1, 2, 0, 1, 2]


def test_a_low_quantile_is_not_disturbed() -> None:
    assert quantile([9.0, 1.0, 1.1, 8.0, 1.2] * 4, 0.1) == 1.0


def test_products_of_each_kind_form_and_row_are_measured() -> None:
    found = kernels.measure_rates(PLAN, 2, silent)
    kinds = {(rate.kind, rate.form, rate.rows, round(rate.matrix_kb), rate.threads) for rate in found}
    assert ("linear", "float32", 8, 16, 0) in kinds
    assert ("exact", "bfloat16", 1, 8, 0) in kinds
    assert ("expert", "bfloat16", 8, 24, 0) in kinds
    assert ("expert", "bfloat16", 1, 24, 1) in kinds
    assert len(kinds) == len(found)
    for rate in found:
        per_byte = 2 * rate.rows / {"float32": 4, "bfloat16": 2}[rate.form]
        assert rate.gflops == pytest.approx(rate.gbytes_per_s * per_byte)


def test_a_step_is_known_by_what_it_has_to_do() -> None:
    with models.made(TINY) as checkpoint, steps.opened(checkpoint) as bench:
        prefill, decode = bench.measure("tiny", 3, Load(4, 3), 1)
    assert prefill.seconds > 0
    assert decode.seconds > 0
    assert [(work.num_rows, work.num_drawn) for work in prefill.works] == [(12, 3)]
    assert prefill.works[0].positions == 3 * (1 + 2 + 3 + 4)
    assert [work.positions for work in decode.works] == [15, 18]
    for work in (*prefill.works, *decode.works):
        assert [sum(rows_E) for rows_E in work.rows_LE] == [2 * work.num_rows] * TINY.n_layers


def small_depth(num_turns: int = 0, workers: tuple[int, ...] = ()) -> passes.Depth:
    two = (("tiny", TINY), ("twin", TINY))
    return passes.Depth(PLAN, two, LOADS, 1, workers, num_turns, 1 << 20, num_passes=2)


def test_a_machine_is_measured_and_its_file_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "depth", lambda **_: small_depth())
    # It reads 256 MiB many times, and has tests of its own.
    monkeypatch.setattr(passes, "measure_physics", lambda *_, **__: Physics(2, 1e10, 1e11))
    given = ProbeArguments(out=tmp_path / "machines.json")
    monkeypatch.setattr(probe, "options_of", lambda *_: given)
    assert probe.run(None) == 0  # type: ignore[arg-type]
    found = read(given.out, Machines)
    (machine,) = found.machines
    assert machine.name == "m0"
    assert machine.kernels
    assert found.date
    assert {each.phase for each in machine.fit} == {"prefill", "decode"}
    assert {each.model for each in machine.fit} == {"tiny", "twin"}
    assert "its own steps within" in capsys.readouterr().out


def test_a_machine_that_cannot_be_measured_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(name: str, depth: passes.Depth, say: object) -> Machine:
        raise RuntimeError("the server did not start: no room")

    given = ProbeArguments(out=tmp_path / "machines.json")
    monkeypatch.setattr(probe, "options_of", lambda *_: given)
    monkeypatch.setattr(probe, "measure_machine", broken)
    with pytest.raises(ConfigError, match="this machine could not be measured: the server did not start"):
        probe.run(None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_of_several_passes_the_medians_count() -> None:
    def a_pass(scale: float) -> passes.Pass:
        rate = ProductRate("bfloat16", 1, 10 * scale, 5 * scale)
        step = steps.Measured("tiny", "decode", 1, 0, (), scale)
        served = Service(4, 2 * scale, scale)
        return passes.Pass(scale, 20 * scale, 200 * scale, (rate,), scale, (step,), (step, step), (served,))

    found = passes.merged([a_pass(1.0), a_pass(9.0), a_pass(2.0)])
    assert found == msgspec.structs.replace(a_pass(2.0), load_average=9.0, gbytes_per_s=180.0, gflops=1800.0)


def test_what_bounds_a_model_is_said() -> None:
    machine = Machine("m0", 4, 64, 20, 200, rates=(RATE,))
    olmoe = shape_of(Path("benchmarks/published/olmoe-1b-7b.json"))
    shown = list(bound_lines(machine, olmoe))
    assert "13.8 GB in bfloat16, fits in 64 GB" in shown[0]
    assert "bound by memory" in shown[1]
    assert "mostly experts" in shown[1]


def test_one_row_reads_more_than_it_multiplies_and_many_rows_do_not() -> None:
    machine = Machine("m0", 4, 64, 20, 200)
    shown = list(bound_lines(machine, shape_of_config(ModelConfig(), "small")))
    assert "bound by memory" in shown[1]
    assert "bound by operations" in shown[4]


def test_a_disk_is_read(tmp_path: Path) -> None:
    found = read_mb_per_s(tmp_path, 8 << 20)
    assert found is not None
    assert found > 0
    assert read_mb_per_s(tmp_path / "missing", 8 << 20) is None


def test_calls_over_the_stream_are_timed() -> None:
    served = Served("127.0.0.1")
    try:
        found = round_trips(served.endpoint, (SMALL, LARGE), 0.05)
    finally:
        served.close()
    assert 0 < found[SMALL] < found[LARGE]


def test_a_path_is_made_of_round_trips_without_what_both_ends_compute() -> None:
    here = {SMALL: 5e-5, LARGE: 3e-4}
    longer = 2 * (LARGE - SMALL) * 8 / 1e9
    path = path_of("m0", "m1", {SMALL: here[SMALL] + 1e-4, LARGE: here[LARGE] + 1e-4 + longer}, here)
    assert path.gbit == pytest.approx(1.0)
    assert path.round_trip_us == pytest.approx(100)


def test_a_path_that_is_as_quick_as_a_machine_itself_has_no_delay() -> None:
    path = path_of("m0", "m1", {SMALL: 4e-5, LARGE: 2e-4}, {SMALL: 5e-5, LARGE: 3e-4})
    assert path.round_trip_us == 0
    assert 0 < path.gbit < 1e4


def test_paths_that_were_measured_elsewhere_replace_their_own() -> None:
    machines = tuple(Machine(f"m{number}", 2, 8, 10, 100) for number in range(3))
    found = Machines(machines, (Way(("m0", "m1"), 10, 50), Way(("m1", "m2"), 10, 50)))
    changed = with_paths(found, [Way(("m1", "m0"), 1, 500)])
    assert changed.path("m0", "m1").gbit == 1
    assert changed.path("m1", "m2").gbit == 10
    with pytest.raises(ValueError, match="no machine"):
        with_paths(found, [Way(("m0", "m9"), 1, 500)])


def shown(fitted_ms: float) -> Sequence[str]:
    fit = (FittedStep("tiny", "decode", 1, 0, 1.0, fitted_ms),)
    machine = Machine("m0", 2, 8, 10, 100, rates=(RATE,), overheads=Overheads(step_us=5), fit=fit)
    return list(lines(Machines((machine,))))


def test_a_fit_that_is_off_is_called_so() -> None:
    assert any("too far off" in line for line in shown(1.2))
    assert not any("too far off" in line for line in shown(1.05))
    assert any("step 5 us" in line for line in shown(1.0))


@pytest.mark.slow
def test_steps_with_workers_and_a_whole_server_are_fitted() -> None:
    machine = Machine("m0", 2, 8, 10, 100, rates=(RATE,))
    depth = small_depth(num_turns=1, workers=(1, 2))
    measured = passes.Pass(0.1, 10, 100, (RATE,), 0.0, *passes.measured_models(depth, silent))
    found = local.with_steps(machine, depth, measured)
    assert {(each.phase, each.workers) for each in found.fit} >= {
        ("decode", 1),
        ("decode", 2),
        ("service", 0),
    }
    assert found.overheads.call_us + found.overheads.worker_us + found.overheads.byte_ns > 0


@pytest.mark.slow
def test_a_machine_of_a_cluster_is_reached_by_its_actor() -> None:
    cluster = RayCluster.start_local(num_cpus=1)
    try:
        with network.probers() as found:
            assert len(found) == 1
            endpoint = ray.get(found[0].serve.remote(), timeout=60)
            seconds = ray.get(found[0].round_trips.remote(endpoint), timeout=60)
            assert 0 < seconds[SMALL] < seconds[LARGE]
            assert ray.get(found[0].host_name.remote(), timeout=60)
    finally:
        cluster.close()
