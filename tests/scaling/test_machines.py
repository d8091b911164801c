"""Machines files: paths between machines, and what is refused."""

from pathlib import Path as FilePath

import pytest

from moe_model.errors import ConfigError
from scaling.link import Link
from scaling.machines import Machine, Machines, Path
from scaling.strict import read

A, B, C = (Machine(name, 2.0, 8.0, 30.0, 500.0) for name in "abc")


def test_a_path_is_found_from_both_ends() -> None:
    path = Path(("a", "b"), 10.0, 100.0)
    machines = Machines((A, B, C), (path,), Link(gbit=1.0, delay_ms=0.5))
    assert machines.path("b", "a") == path
    assert machines.path("a", "c") == Path(("a", "c"), 1.0, 1000.0)
    assert machines.path("a", "a").round_trip_us == 0


def test_a_pair_of_which_nothing_is_known_is_named() -> None:
    with pytest.raises(ConfigError, match="between a and b"):
        Machines((A, B)).path("a", "b")
    with pytest.raises(ConfigError, match="no machine 'z'; there are a, b"):
        Machines((A, B)).named("z")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("machines: []", "machines"),
        (
            "machines: [{name: a, cores: 1, memory_gb: 1, gbytes_per_s: 1, gflops: 1}]\n"
            "paths: [{between: [a, a], gbit: 1, round_trip_us: 1, loss_percent: 100}]",
            "loss_percent",
        ),
        ("machines: [{name: a, cores: 0, memory_gb: 1, gbytes_per_s: 1, gflops: 1}]", "cores"),
        (
            "machines: [{name: a, cores: 1, memory_gb: 1, gbytes_per_s: 1, gflops: 1}]\n"
            "paths: [{between: [a, b], gbit: 1, round_trip_us: 1}]",
            "'b', which is no machine",
        ),
        ("machines: [{name: a, cores: 1, memory_gb: 1, gbytes_per_s: 1, gflops: 1, gpus: 1}]", "gpus"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: FilePath, text: str, said: str) -> None:
    path = tmp_path / "machines.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read(path, Machines)
