from pathlib import Path

import pytest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty folder for a source's files."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    """Where the checkpoint is to come; it is not there yet."""
    return tmp_path / "new"
