"""A real server whose experts are forced, and what it records of that."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from coordinator.engine.recording.trace_reader import TraceReader
from expertmesh import Client, ControlClient, Delta
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


@pytest.mark.parametrize("routing", [(), ("--force-routing=zipf:1.2:3",)], ids=["own", "forced"])
def test_a_worker_that_dies_changes_nothing_of_what_is_recorded(
    tmp_path: Path, routing: tuple[str, ...]
) -> None:
    trace = tmp_path / "trace"
    arguments = (str(DEMO_CHECKPOINT), "--workers=2", "--replicas=2", "--no-prefix-caching", *routing)
    with Server(*arguments, f"--record-routing={trace}", log=tmp_path / "log") as server:
        server.wait_ready()
        with Client(server.address) as client, ControlClient(server.address_of("control")) as control:
            calm = client.generate(
                TOKENS, max_tokens=64, ignore_eos=True, temperature=0, return_token_ids=True
            )
            victim = control.topology()[1].pid
            disturbed: list[int] = []
            for event in client.stream(
                TOKENS, max_tokens=64, ignore_eos=True, temperature=0, return_token_ids=True
            ):
                if isinstance(event, Delta):
                    if len(disturbed) < 8 <= len(disturbed) + len(event.token_ids):
                        os.kill(victim, signal.SIGKILL)
                    disturbed += event.token_ids
        server.stop()
        assert "worker 1" in server.log
    assert len(disturbed) == 64
    assert tuple(disturbed) == calm.token_ids
    first, second = sorted(TraceReader.open(trace).requests(), key=lambda each: each.number)
    assert first.known_T.all()
    assert len(first.ids_TLK) == len(TOKENS) + 64 - 1
    np.testing.assert_array_equal(first.ids_TLK, second.ids_TLK)
