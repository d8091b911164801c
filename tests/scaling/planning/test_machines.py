"""Where `--machines` are from: a file, or a cluster that is probed."""

from pathlib import Path

import pytest

from moe_model.errors import ClusterError, ConfigError
from scaling.commands import plan
from scaling.machines import Machine, Machines

FOUND = Machines((Machine("10.0.0.1", 4, 64, 20, 200),))


def test_a_clusters_machines_are_named_by_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def probed(address: str, *_: object, **named: object) -> Machines:
        seen.extend((address, named))
        return FOUND

    monkeypatch.setattr(plan, "probe_cluster", probed)
    assert plan.machines_of("10.0.0.1:6379", insecure=True) == FOUND
    assert seen == ["10.0.0.1:6379", {"addresses": True, "insecure": True}]


def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1"):
        plan.machines_of("127.0.0.1:1", insecure=True)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"m\.yaml"):
        plan.machines_of(str(tmp_path / "m.yaml"))
