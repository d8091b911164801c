"""The tools that check files of deploy/: pinned, and named where they are missing."""

import re
from pathlib import Path

import pytest

from tests.deploy import tools

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def test_every_tool_is_pinned() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 6
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


@pytest.mark.parametrize(
    ("name", "how"),
    [("promtool", "apt-get install prometheus"), ("hadolint", "python scripts/deploy_tools.py")],
)
def test_a_missing_one_says_how_it_comes(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "PLACES", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(pytest.fail.Exception, match=f"{name} is missing, .*: {how}"):
        tools.tool(name)
