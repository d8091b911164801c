"""A real server whose experts are forced, and what it records of that."""

from pathlib import Path

import numpy as np
import pytest

from expertmesh import Client
from scaling.routing.loads import zipf_loads
from scaling.routing.trace_file import TraceFile
from scaling.shape import shape_of
from tests.integration.processes import DEMO_CHECKPOINT, Server

pytestmark = pytest.mark.long

TOKENS = tuple(np.random.default_rng(0).integers(3, 200, 100).tolist())


def test_a_server_routes_by_the_law_that_it_was_given(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    arguments = (str(DEMO_CHECKPOINT), "--workers=0", "--force-routing=zipf:1.2:3")
    with Server(*arguments, f"--record-routing={trace}", log=tmp_path / "log") as server:
        server.wait_ready()
        with Client(server.address) as client:
            for first in range(6):
                client.generate([*TOKENS[first:], *TOKENS[:first]], max_tokens=8, ignore_eos=True)
        server.stop()
        assert "outputs are NOT the model's" in server.log
    shape, found = shape_of(DEMO_CHECKPOINT), TraceFile.open(trace)
    assert sum(len(rows) for rows in found.rows()) > 6 * 100
    for shares_E, expected_E in zip(found.shares(), zipf_loads(shape, 1.2, 3), strict=True):
        assert np.array(shares_E) == pytest.approx(np.array(expected_E), abs=0.04)
