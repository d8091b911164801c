"""Made-up results that several tests only read, made once."""

from pathlib import Path

import pytest

from scaling.cell import Cell, Load
from scaling.observation import Observation
from scaling.store import Results
from tests.scaling.results import made

HOSTILE = "models/<script>alert('x')$a_{ & \"b\".json"


@pytest.fixture(scope="package")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One of everything that figures show: workers, links, a fault, skew, predictions, a failed run."""
    link = made.LINKS[1]
    cells = [
        Cell(model=HOSTILE, load=Load(concurrency=8), workers=workers, where="namespaces", link=each)
        for workers, each in ((1, made.LINKS[0]), (2, made.LINKS[0]), (1, link))
    ]
    cells += made.faulty()[:2]
    folder = tmp_path_factory.mktemp("results") / "everything"
    results = made.make(folder, cells, bounds={"throughput_worst": 0.5}, name="<img src=http://x.invalid/>")
    results.add(
        Observation(cells[0].key, 3, 1, "2026-01-02T03:04:05+00:00", 0.0, failed="<b>no memory</b> & more")
    )
    return Results.open(folder)


@pytest.fixture
def small(tmp_path: Path) -> Results:
    return made.make(tmp_path / "small", made.small())
