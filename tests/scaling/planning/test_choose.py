from functools import cache
from pathlib import Path as FilePath

import msgspec
import pytest

from coordinator.server.plan_file import parse_plan
from moe_model.errors import ConfigError
from scaling.link import Link
from scaling.machines import Machine, Machines, Path
from scaling.planning.choose import Plan, Wish, plan
from scaling.planning.loads import chances
from scaling.planning.report import report
from scaling.planning.setting import Setting
from scaling.planning.what_if import changes
from scaling.planning.write import memory_gb, plan_data, report_data, write_plan
from scaling.routing.loads import zipf_loads
from scaling.shape import config_of, shape_of_config

PUBLISHED = FilePath("benchmarks/published")
LINK = Link(10.0, 0.05)


def machine(name: str, scale: float = 1.0, memory_gb: float = 64.0) -> Machine:
    return Machine(name, 8 * scale, memory_gb, 50 * scale, 750 * scale)


def setting(*machines: Machine, layers: int = 2, link: Link | None = LINK) -> Setting:
    """The first layers of Mixtral: 8 experts of 0.35 GB in bfloat16 each."""
    config = config_of(PUBLISHED / "mixtral-8x7b.json", layers)
    shape = shape_of_config(config, "mixtral")
    chance_LE = chances(zipf_loads(shape, 1.2, 0), shape)
    found = Machines(machines or (machine("a"), machine("b", 0.5), machine("c", 2.0)), link=link)
    return Setting(shape, config, found, chance_LE, found.machines[0].name)


def made(base: Setting, **wish: object) -> Plan:
    return plan(base, Wish(seconds=0.2, **wish))  # type: ignore[arg-type]


@cache
def usual() -> Plan:
    """What three machines are used for where nothing is asked."""
    return made(setting())


def test_the_quickest_machine_coordinates_and_one_loss_is_survived() -> None:
    found = usual()
    assert found.setting.coordinator == "c"
    assert found.survives == 1
    assert [m.name for m in found.setting.workers] == ["a", "b", "c"]
    assert found.solution.costs[1] > found.solution.costs[0] > found.solution.costs[2] == 1.0


def test_what_was_named_is_kept() -> None:
    found = made(setting(), coordinator="b", coordinator_only=True, concurrency=3, survive=0)
    assert found.setting.coordinator == "b"
    assert [m.name for m in found.setting.workers] == ["a", "c"]
    assert found.step.num_rows == 3
    assert found.survives == 0


def test_latency_takes_one_sequence_and_throughput_many() -> None:
    latency, throughput = made(setting(), objective="latency"), usual()
    assert latency.step.num_rows == 1 < throughput.step.num_rows
    assert latency.step.seconds < throughput.step.seconds
    assert latency.step.tokens_per_s < throughput.step.tokens_per_s


def test_a_gap_bounds_the_batch_or_is_said_to_be_missed() -> None:
    free = usual()
    bound_ms = 0.5e3 * free.step.seconds
    bound = made(setting(), max_gap_ms=bound_ms)
    assert bound.step.num_rows < free.step.num_rows
    assert 1e3 * bound.step.seconds <= bound_ms
    # Where the network's delay is most of it.
    far = setting(layers=8, link=Link(10.0, 2.0))
    slow = made(far, objective="throughput")
    near = made(far, max_gap_ms=0.6e3 * slow.step.seconds)
    assert 1 < near.step.num_rows < slow.step.num_rows
    assert near.step.seconds <= 0.6 * slow.step.seconds
    missed = made(setting(), max_gap_ms=1e-3)
    assert missed.step.num_rows == 1
    assert "above the 0.001 ms that were asked for" in missed.notes[-1]


def test_what_does_not_fit_is_refused_by_what_is_missing() -> None:
    """16 experts of 0.35 GB, twice; a machine of 4 GB keeps 2.7 for experts: 7 of them."""
    small = [machine(name, memory_gb=4.0) for name in "abc"]
    with pytest.raises(ConfigError, match=r"2 copies of mixtral's experts need \d+\.\d GB more of memory"):
        made(setting(*small), survive=1, coordinator="a")
    one = made(setting(*small), coordinator="a")
    assert one.survives == 0
    assert "no loss of a machine is survived: a second copy of each expert needs" in one.notes[0]
    with pytest.raises(ConfigError, match=r"a cannot coordinate: needs \d+\.\d GB more of memory"):
        made(setting(machine("a", memory_gb=0.5), machine("b")), coordinator="a", survive=0)
    with pytest.raises(ConfigError, match="5 copies of each expert need as many workers, there are 3"):
        made(setting(), survive=4)


def test_a_form_is_chosen_that_fits() -> None:
    small = [machine(name, memory_gb=5.0) for name in "abc"]
    found = made(setting(*small), form=None)
    assert found.setting.form == "q8"
    assert found.survives == 1
    assert "experts are rounded to q8" in found.notes[0]


def test_a_network_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing says how fast the network between"):
        made(setting(link=None), coordinator="a")


def test_memory_is_within_the_machines() -> None:
    found = usual()
    used = memory_gb(found)
    for each in found.setting.machines.machines:
        assert 0 < used[each.name] <= each.memory_gb


def test_a_file_is_what_a_server_reads(tmp_path: FilePath) -> None:
    found = usual()
    write_plan(found, tmp_path / "plan.json")
    data = msgspec.json.decode((tmp_path / "plan.json").read_bytes())
    file = parse_plan(data)
    file.check_model(found.setting.config)
    assert file.options["workers"] == "3"
    assert file.options["replicas"] == "2"
    for layer, row in zip(found.setting.shape.moe_layers, found.solution.holders, strict=True):
        for slot, ranks in enumerate(row):
            assert {r for r, w in enumerate(file.workers) if slot in w.experts.get(layer, ())} == set(ranks)


def test_machines_that_are_called_by_their_address_are_known_by_it() -> None:
    found = made(setting(machine("10.0.0.1"), machine("b")))
    assert plan_data(found)["machines"] == {"10.0.0.1": "10.0.0.1", "b": None}


def test_nothing_that_is_added_makes_a_plan_worse() -> None:
    found = usual()
    others = changes(found, Wish(seconds=0.2))
    assert [each.name.split()[0] for each in others] == ["one", "one", "links", "half"]
    for each in others:
        if each.plan is not None and "copy" not in each.name:
            assert each.plan.solution.seconds <= found.solution.seconds * 1.02, each.name
    assert "cannot be" not in "\n".join(report(found, others[:1]))
    text = "\n".join(report(found, others))
    assert "tokens/s" in text
    assert "round robin" in text
    data = report_data(found, others)
    assert data["predicted"]["survives"] == 1
    assert set(data["what_if"]) == {each.name for each in others}


def test_one_more_machine_has_the_paths_of_its_twin() -> None:
    paths = (Path(("a", "b"), 1.0, 500.0), Path(("a", "c"), 10.0, 50.0), Path(("b", "c"), 1.0, 500.0))
    base = setting(link=None)
    base = base.with_(machines=msgspec.structs.replace(base.machines, paths=paths))
    found = made(base, coordinator="a")
    more = changes(found, Wish(seconds=0.2))[0]
    assert more.name == "one more machine like c"
    assert more.plan is not None
    assert more.plan.setting.machines.path("a", "c-2").gbit == 10.0
    assert more.plan.setting.machines.path("c", "c-2").gbit == 10.0


def test_a_slow_network_binds() -> None:
    found = made(setting(link=Link(0.01, 5.0)), concurrency=8, coordinator="a")
    assert found.step.binds in ("delay of the network", "experts of the slowest worker", "coordinator's link")
    quick = made(setting(link=Link(100.0, 0.01)), concurrency=8, coordinator="a")
    assert quick.step.seconds < found.step.seconds
