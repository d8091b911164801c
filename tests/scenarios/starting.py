"""A whole server in this process, what a start that must fail says, and that nothing is held at the end."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.config.engine import EngineConfig
from coordinator.config.model import ModelOptions
from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses
from coordinator.config.workers import WorkersConfig
from coordinator.engine.messages.commands import CheckIntegrity
from coordinator.server.main import RunningServer, open_server
from expertmesh.cli import main
from moe_model.errors import UserError, WorldError

ENGINE = EngineConfig(block_size=4, kv_cache_bytes=1 << 20, max_num_seqs=8, max_step_tokens=64)
GRPC_ONLY = Addresses("127.0.0.1:0", control=None, http=None)


def config_of(checkpoint: Path, num_workers: int = 2) -> ServeConfig:
    return ServeConfig(
        checkpoint=str(checkpoint),
        engine=ENGINE,
        workers=WorkersConfig(num_workers=num_workers, transport="in-process"),
        addresses=GRPC_ONLY,
        model=ModelOptions(max_output_tokens=1 << 20, name="tiny"),
    )


async def refusal_of(checkpoint: Path, num_workers: int = 2) -> str:
    """Starts a server on a checkpoint; the one line with which it refuses to."""
    with pytest.raises((UserError, WorldError)) as raised:
        async with open_server(config_of(checkpoint, num_workers)):
            pass
    message = str(raised.value)
    assert "\n" not in message
    return message


def command_refuses(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which a command ends."""
    assert main([str(argument) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"expertmesh {arguments[0]}: error: ")
    return line


PATIENCE = 60.0


async def until(condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.001)


async def assert_all_free(server: RunningServer) -> None:
    """Waits until the engine has nothing to do; then nobody holds anything."""
    await until(lambda: not server.engine.stats().num_running + server.engine.stats().num_waiting)
    await until(lambda: not len(server.engine.request_ids) + server.fronts.gate.num_calls)
    await asyncio.to_thread(server.engine.call, CheckIntegrity())
    stats, admission = server.engine.stats(), server.fronts.gate.admission
    assert stats.num_free_blocks == stats.num_blocks
    assert (admission.num_sequences, admission.num_waiting_tokens) == (0, 0)


def num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))
