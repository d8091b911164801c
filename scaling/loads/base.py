"""A load: requests that are sent, and what became of each, whatever sends them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from scaling.cell import Load


class Target(Struct, frozen=True):
    """A server, and what a load must know of its model. Addresses are HOST:PORT.

    `tokenizer`: the model's tokenizer.json; None: it has none, and then prompts are token ids, which only our
    own client sends. `allowed_experts`: the experts that a request may use, of the requests in turns; empty:
    all; of our own client only."""

    grpc_address: str
    http_address: str
    model_name: str
    vocab_size: int
    max_seq_len: int
    tokenizer: Path | None = None
    allowed_experts: tuple[tuple[int, ...], ...] = ()


class Timed(Struct, frozen=True):
    """One request as its client saw it. Seconds since the load began; `token_s`: when each token came (where
    a tool tells only the first and the last, those between are left out). `due_s`: when it was to be sent.
    `token_ids`: empty where the tool does not keep them. `error`: its status; None: it is complete."""

    due_s: float
    sent_s: float
    end_s: float
    token_s: tuple[float, ...]
    num_prompt_tokens: int
    num_tokens: int
    token_ids: tuple[int, ...] = ()
    error: str | None = None


class LoadRun(Struct, frozen=True):
    """`seconds`: from the first request to the end of the last. `load_cpu_s`: of what sent them. `began_s`:
    when it began, by time.monotonic() of this machine. `notes`: what of the workload is not as it was asked,
    a sentence each."""

    seconds: float
    requests: tuple[Timed, ...]
    load_cpu_s: float
    began_s: float = 0.0
    notes: tuple[str, ...] = ()


class Sender(Protocol):
    """One way of sending a load."""

    def run(
        self,
        target: Target,
        load: Load,
        seed: int,
        folder: Path,
        on_begin: Callable[[], None],
        timeout: float,
    ) -> LoadRun:
        """Warms nothing up; calls `on_begin` as the first request is sent; files of its own go to `folder`.
        Raises RuntimeError, a line, where the tool fails or `timeout` seconds have passed."""


def num_requests(load: Load, least: int = 16) -> int:
    """As many as the load says; else four for each at once, or what comes in ten seconds."""
    if load.num_requests is not None:
        return load.num_requests
    if load.rate is not None:
        return max(least, round(10 * load.rate))
    return max(least, 4 * (load.concurrency or 1))


def complete(requests: Sequence[Timed]) -> list[Timed]:
    return [request for request in requests if request.error is None]
