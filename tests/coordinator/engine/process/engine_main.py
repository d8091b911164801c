"""A process with an engine at a path, as soon as a line comes in: it counts until it is killed.

python -m tests.coordinator.engine.process.engine_main PATH
"""

import asyncio
import sys
from pathlib import Path

from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.process.server import EngineServer
from tests.coordinator.engine.fakes import CountingRunner, engine_over


async def serve(path: Path) -> None:
    core = engine_over(
        CountingRunner(), max_seq_len=1 << 20, num_blocks=1 << 12, block_size=256, max_num_seqs=16
    )
    await EngineServer(EngineThread(core)).serve(path)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.stdin.readline()
    asyncio.run(serve(Path(sys.argv[1])))
