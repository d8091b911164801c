"""What is made of a server's metrics, of /proc and of /sys."""

import os
from pathlib import Path

import pytest

from benchmarks.process_tree import Process
from coordinator.metrics import of_engine
from scaling.sweep import resources
from scaling.sweep.metrics import Between, counts, measures, parsed
from scaling.sweep.roles import roles

BEFORE = """
# TYPE expertmesh_step_seconds histogram
expertmesh_step_seconds_bucket{le="+Inf",model_name="m",phase="decode"} 10
expertmesh_step_seconds_count{model_name="m",phase="decode"} 10
expertmesh_step_seconds_sum{model_name="m",phase="decode"} 1.0
# TYPE expertmesh_expert_bytes counter
expertmesh_expert_bytes_total{direction="dispatch",model_name="m"} 100
expertmesh_expert_bytes_total{direction="combine",model_name="m"} 50
"""
AFTER = """
# TYPE expertmesh_step_seconds histogram
expertmesh_step_seconds_count{model_name="m",phase="decode"} 14
expertmesh_step_seconds_sum{model_name="m",phase="decode"} 1.4
expertmesh_step_seconds_count{model_name="m",phase="prefill"} 1
expertmesh_step_seconds_sum{model_name="m",phase="prefill"} 0.6
# TYPE expertmesh_expert_bytes counter
expertmesh_expert_bytes_total{direction="dispatch",model_name="m"} 400
expertmesh_expert_bytes_total{direction="combine",model_name="m"} 30
# TYPE expertmesh_expert_dispatch_seconds histogram
expertmesh_expert_dispatch_seconds_count{model_name="m"} 20
expertmesh_expert_dispatch_seconds_sum{model_name="m"} 0.5
# TYPE expertmesh_expert_combine_seconds histogram
expertmesh_expert_combine_seconds_count{model_name="m"} 20
expertmesh_expert_combine_seconds_sum{model_name="m"} 0.1
# TYPE expertmesh_expert_straggler_seconds histogram
expertmesh_expert_straggler_seconds_count{model_name="m"} 20
expertmesh_expert_straggler_seconds_sum{model_name="m"} 0.04
"""


def test_the_split_of_a_step() -> None:
    found = measures(Between(parsed(BEFORE), parsed(AFTER)))
    assert found["num_steps"] == 5
    assert found["split_ms"] == pytest.approx({"dispatch": 100.0, "combine": 20.0, "rest": 80.0})
    assert found["straggler_ms"] == pytest.approx(2.0)
    assert found["balancedness"] is None


def test_a_counter_that_began_anew() -> None:
    found = measures(Between(parsed(BEFORE), parsed(AFTER)))
    assert (found["bytes_sent"], found["bytes_received"]) == (300, 30)


def test_nothing_counted() -> None:
    between = Between(parsed(AFTER), parsed(AFTER))
    assert measures(between)["split_ms"] == {}
    assert between.mean(of_engine.STEP_SECONDS) is None


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(RuntimeError, match=r"/metrics of 127\.0\.0\.1:1"):
        counts("127.0.0.1:1")


def test_text_that_is_none() -> None:
    with pytest.raises(RuntimeError, match="/metrics"):
        parsed("expertmesh_step_seconds{ 3")


def package(folder: Path, number: str, name: str, microjoules: int) -> None:
    made = folder / f"intel-rapl:{number}"
    made.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", 10_000_000)):
        (made / file).write_text(f"{value}\n")


def test_energy_is_that_of_packages_and_goes_on_where_it_began_anew(tmp_path: Path) -> None:
    package(tmp_path, "0", "package-0", 9_000_000)
    package(tmp_path, "1", "package-1", 1_000_000)
    package(tmp_path, "0:0", "core", 1)
    before = resources.look({}, tmp_path)
    package(tmp_path, "0", "package-0", 2_000_000)
    package(tmp_path, "1", "package-1", 1_500_000)
    package(tmp_path, "0:0", "core", 5_000_000)
    after = resources.look({}, tmp_path)
    assert resources.joules(before, after, tmp_path) == pytest.approx(3.5)


def test_no_energy_where_the_machine_does_not_say(tmp_path: Path) -> None:
    nothing = resources.look({}, tmp_path)
    assert resources.joules(nothing, nothing, tmp_path) is None


def test_processor_time_and_memory_by_role() -> None:
    pids = {"front": [os.getpid()], "gone": [2**22 - 1]}
    before = resources.Look({os.getpid(): 0.0}, {})
    used = resources.cpu_by_role(before, resources.look(pids), pids)
    assert used["front"] > 0
    assert used["gone"] == 0
    assert resources.memory_by_role(pids)["front"] > 1


def test_roles() -> None:
    python = ("python", "-P", "-m")
    found = roles(
        [
            Process(1, (*python, "scaling.sweep.guard", "python", "-P", "-m", "expertmesh.cli", "serve")),
            Process(2, (*python, "expertmesh.cli", "serve", "x")),
            Process(3, (*python, "coordinator.server.engine_process", "1")),
            Process(4, (*python, "coordinator.server.front_process", "1")),
            Process(5, ("ray::ExpertActor",)),
            Process(6, ("raylet",)),
        ]
    )
    assert found == {"coordinator": [2], "engine": [3], "front": [4], "workers": [5], "ray": [6]}
