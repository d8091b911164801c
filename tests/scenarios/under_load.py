"""Streams that run through a fault, what each of them saw, and what must hold whatever happens.

The checks are those of Jepsen's and NVIDIA Dynamo's fault tests: tokens in order and complete, one end each,
the same tokens as without the fault or a beginning of them and an error.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from expertmesh import AsyncClient, ClientError, ControlClient, Delta, Finished
from expertmesh.v1 import control_pb2 as pb
from tests.chaos.load import histogram

READY = pb.ExpertWorker.STATE_READY
NUM_STREAMS, NUM_TOKENS = 8, 64
PATIENCE = 120.0


@dataclass
class History:
    """One stream: when each token came, by time.perf_counter(), and how it ended."""

    token_ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish: str | None = None
    error: ClientError | None = None

    @property
    def longest_gap(self) -> float:
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)


@dataclass
class Load:
    """The same requests again and again: half of them greedy, half drawn with a seed."""

    address: str
    num_streams: int = NUM_STREAMS
    num_tokens: int = NUM_TOKENS
    golden: list[list[int]] = field(default_factory=list)
    usual_gap: float = 0.0

    async def learn(self) -> None:
        """What comes out when nothing fails, and how long one waits for a token then."""
        for _ in range(2):
            histories = await self.run()
        self.golden = [history.token_ids for history in histories]
        self.usual_gap = max(history.longest_gap for history in histories)
        assert all(history.finish == "length" for history in histories)
        assert all(len(tokens) == self.num_tokens for tokens in self.golden)

    async def run(self) -> list[History]:
        async with self.running() as tasks:
            return [await task for task in tasks]

    @asynccontextmanager
    async def running(self, num_tokens: int = 0) -> AsyncIterator[list[asyncio.Task[History]]]:
        """In the block, every stream has had `num_tokens` tokens."""
        client = AsyncClient(self.address, timeout=PATIENCE)
        histories = [History() for _ in range(self.num_streams)]
        tasks = [
            asyncio.create_task(self._stream(client, number, history))
            for number, history in enumerate(histories)
        ]
        try:
            await until(lambda: all(len(h.times) >= num_tokens or h.error for h in histories))
            yield tasks
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()

    async def _stream(self, client: AsyncClient, number: int, history: History) -> History:
        prompt = f"def function_{number}(self, value):"
        try:
            async for event in client.stream(
                prompt,
                max_tokens=self.num_tokens,
                temperature=0.0 if number % 2 else 0.8,
                seed=number,
                ignore_eos=True,
                return_token_ids=True,
            ):
                assert history.finish is None or not isinstance(event, Delta | Finished), "after its end"
                if isinstance(event, Delta):
                    history.token_ids += event.token_ids
                    history.times += [time.perf_counter()] * len(event.token_ids)
                elif isinstance(event, Finished):
                    history.finish = event.finish_reason
        except ClientError as error:
            history.error = error
        return history

    def check(self, histories: Sequence[History], allowed: Sequence[str] = ()) -> None:
        """Every stream ended once, with all its tokens, or with an allowed error and a beginning of them."""
        print(histogram([history.longest_gap for history in histories]))
        for number, (history, golden) in enumerate(zip(histories, self.golden, strict=True)):
            assert (history.finish is None) != (history.error is None), f"stream {number} has not one end"
            if history.error is None:
                assert history.token_ids == golden, f"stream {number} has other tokens"
            else:
                assert history.error.code in allowed, f"stream {number}: {history.error}"
                assert history.token_ids == golden[: len(history.token_ids)], f"stream {number}: other tokens"

    def added_gap(self, histories: Sequence[History]) -> float:
        """Seconds beyond what is usual that somebody waited for a token."""
        return max(0.0, max(history.longest_gap for history in histories) - self.usual_gap)

    def bar(self, seconds: float) -> float:
        """What may be added on a quick machine, and more where all is slow, or busy with something else."""
        return seconds + 10 * self.usual_gap


async def until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


async def until_true(condition: Callable[[], Awaitable[bool]], timeout: float = PATIENCE) -> float:
    """Seconds until it held."""
    started = time.perf_counter()
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.02)
    return time.perf_counter() - started


@dataclass
class Operator:
    """Looks at the workers from the control service."""

    control: ControlClient

    def workers(self) -> dict[int, pb.ExpertWorker]:
        return {worker.rank: worker for worker in self.control.topology(include_experts=True)}

    def pid(self, rank: int) -> int:
        pid = int(self.workers()[rank].pid)
        assert pid, f"worker {rank} has no process"
        return pid

    def num_losses(self) -> int:
        return sum(worker.losses for worker in self.workers().values())

    def holders(self) -> dict[tuple[int, int], set[int]]:
        """Of each expert of each layer."""
        held: dict[tuple[int, int], set[int]] = {}
        for rank, worker in self.workers().items():
            for layer in worker.layers if worker.state == READY else ():
                for expert in layer.expert_ids:
                    held.setdefault((layer.layer, expert), set()).add(rank)
        return held

    async def until_replicated(
        self, num_workers: int, replicas: int, num_modules: int = 20, num_losses: int = 0
    ) -> float:
        """Seconds until that many workers are ready and each expert is there so often, after so many losses:
        what a front tells of workers may be from before one, and streams may end sooner than it hears."""

        async def is_replicated() -> bool:
            workers = await asyncio.to_thread(self.workers)
            held = await asyncio.to_thread(self.holders)
            return (
                len(workers) == num_workers
                and sum(worker.losses for worker in workers.values()) >= num_losses
                and all(worker.state == READY for worker in workers.values())
                and len(held) == num_modules
                and all(len(ranks) >= replicas for ranks in held.values())
            )

        return await until_true(is_replicated)
