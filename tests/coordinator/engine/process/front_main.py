"""A process with a front of the engine at a path: it has requests open and reads them, until it is killed.

    python -m tests.coordinator.engine.process.front_main PATH NUM_REQUESTS

Says "open" when each of them has had a token.
"""

import asyncio
import sys
from pathlib import Path

from coordinator.engine.messages.request import ContextOverflow, Request, StopRules
from coordinator.engine.process.client import ProcessEngine
from moe_model.sampling.params import SamplingParams


async def hold(path: Path, num_requests: int) -> None:
    engine = await ProcessEngine.connect(path, 30.0)
    num_begun = 0
    done = asyncio.Event()

    async def read(number: int) -> None:
        nonlocal num_begun
        rules = StopRules(max_tokens=1 << 19, context_overflow=ContextOverflow.SLIDE)
        stream = engine.stream(Request(f"r{number}", (1, 2), SamplingParams(temperature=0), rules))
        await anext(stream)
        num_begun += 1
        if num_begun == num_requests:
            done.set()
        async for _ in stream:
            pass

    readers = [asyncio.create_task(read(number)) for number in range(num_requests)]
    await done.wait()
    sys.stdout.write("open\n")
    sys.stdout.flush()
    await asyncio.wait(readers)


if __name__ == "__main__":
    asyncio.run(hold(Path(sys.argv[1]), int(sys.argv[2])))
