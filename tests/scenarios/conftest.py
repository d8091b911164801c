"""Servers that scenarios break."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from expertmesh import ControlClient
from tests.integration.processes import DEMO_CHECKPOINT, Server
from tests.moe_model.source_files import write_checkpoint
from tests.scenarios.under_load import Operator


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint, to be broken."""
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty folder for what is to be imported."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Three workers, each expert on two of them."""
    log = tmp_path_factory.mktemp("trio") / "log"
    arguments = (str(DEMO_CHECKPOINT), "--workers=3", "--replicas=2", "--call-timeout=1")
    with Server(*arguments, log=log) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def operator(trio: Server) -> Iterator[Operator]:
    with ControlClient(trio.address_of("control")) as control:
        yield Operator(control)
