"""The ports on which a machine's workers listen for rows."""

import pytest

from expert_workers.cluster.data_ports import DATA_PORTS, data_ports
from moe_model.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "ports"),
    [("", range(0)), ("20100-20199", range(20100, 20200)), ("4711-4711", range(4711, 4712))],
)
def test_both_ends_are_included(given: str, ports: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_PORTS, given)
    assert data_ports() == ports


@pytest.mark.parametrize(
    "given", ["80-90", "2000", "2000-1999", "60000-70000", "a-b", " 2000-2001", "2000-2001\n"]
)
def test_anything_else_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_PORTS, given)
    with pytest.raises(ConfigError, match="is not MIN-MAX"):
        data_ports()
