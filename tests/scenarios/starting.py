"""A whole server in this process, and what a start that must fail says."""

from pathlib import Path

import pytest

from coordinator.cli import main
from coordinator.config import Addresses, EngineConfig, ModelOptions, ServeConfig, WorkersConfig
from coordinator.server import open_server
from moe_model.errors import UserError, WorldError

ENGINE = EngineConfig(block_size=4, kv_cache_bytes=1 << 20, max_num_seqs=8, max_step_tokens=64)
GRPC_ONLY = Addresses("127.0.0.1:0", control=None, http=None)


def config_of(checkpoint: Path, num_workers: int = 2) -> ServeConfig:
    return ServeConfig(
        checkpoint=checkpoint,
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
