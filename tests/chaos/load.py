"""Load that runs through a fault: greedy streams again and again, and a record of all that clients saw."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from expertmesh import Client, ClientError, Connection, Delta, Finished, GenerateOptions
from scaling.hosts.ray_hosts import wait_until

_WORDS = ("a", "open", "x1", "read", "sum", "end", "keys", "it")
PROMPTS = tuple(f"def test_{word}(self):\n    " for word in _WORDS)
MAX_TOKENS = 64
OK = "OK"
# Longer than any wait that the server promises to end.
_STREAM_TIMEOUT = 90.0
# A text, or token ids.
Asked = str | tuple[int, ...]
# What is to come for each prompt, at least as long as any stream.
Golden = Mapping[Asked, tuple[int, ...]]


@dataclass(slots=True)
class Stream:
    """One request. `times` are of its messages with tokens; all by time.monotonic()."""

    prompt: Asked
    started: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    num_finished: int = 0
    is_late: bool = False
    status: str = ""
    message: str = ""
    ended: float = 0.0

    @property
    def longest_gap(self) -> float:
        """The longest that its client waited: for the first token, from one to the next, for the end."""
        times = [self.started, *self.times, self.ended]
        return max(later - earlier for earlier, later in pairwise(times))


def golden_of(address: str, prompts: Sequence[Asked] = PROMPTS) -> Golden:
    """What a server answers to each prompt, one after the other."""
    with Client(address) as client:
        return {prompt: client.generate(prompt, **_greedy(MAX_TOKENS)).token_ids for prompt in prompts}


class Load:
    """One thread for each prompt, which asks again as soon as it has its answer, until the block ends."""

    def __init__(
        self,
        address: str,
        prompts: Sequence[Asked] = PROMPTS,
        *,
        max_tokens: int = MAX_TOKENS,
        connection: Connection | None = None,
    ) -> None:
        self._max_tokens = max_tokens
        self.streams: list[Stream] = []
        self.usual_gap = 0.0
        self._client = Client(address, timeout=_STREAM_TIMEOUT, connection=connection)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(prompt,)) for prompt in prompts]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        wait_until(
            lambda: len({stream.prompt for stream in self.streams if stream.times}) == len(self._threads),
            _STREAM_TIMEOUT,
            "some stream has no token",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_STREAM_TIMEOUT + 10)
        self._client.close()

    def wait_for_more(self, timeout: float = 30.0) -> float:
        """Until a request of each prompt has been answered whole that began after this call.

        Seconds it took. TimeoutError.
        """
        started = time.monotonic()
        prompts = len(self._threads)
        wait_until(
            lambda: len(self._whole_since(started)) == prompts, timeout, "not every prompt was answered"
        )
        return time.monotonic() - started

    def _whole_since(self, moment: float) -> set[Asked]:
        return {s.prompt for s in list(self.streams) if s.started >= moment and s.status == OK}

    def _run(self, prompt: Asked) -> None:
        while not self._stop.is_set():
            stream = Stream(prompt, time.monotonic())
            self.streams.append(stream)
            self._ask(stream)
            if stream.status != OK:
                # A client whose request failed does not come again at once.
                self._stop.wait(0.2)

    def _ask(self, stream: Stream) -> None:
        try:
            for event in self._client.stream(stream.prompt, **_greedy(self._max_tokens)):
                if isinstance(event, Delta):
                    stream.is_late |= stream.num_finished > 0
                    stream.tokens += event.token_ids
                    stream.times.append(time.monotonic())
                elif isinstance(event, Finished):
                    stream.num_finished += 1
            stream.status = OK
        except ClientError as error:
            stream.status, stream.message = error.code, error.message
        finally:
            stream.ended = time.monotonic()


def _greedy(max_tokens: int) -> GenerateOptions:
    return {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True, "return_token_ids": True}


def check(
    streams: Sequence[Stream],
    golden: Golden,
    allowed: Sequence[str] = (OK,),
    max_tokens: int = MAX_TOKENS,
) -> None:
    """Each stream ended once, in an allowed way, with the golden tokens; one that failed, with the first."""
    for stream in streams:
        assert stream.status in allowed, f"{stream.status} {stream.message}"
        num_tokens = max_tokens if stream.status == OK else len(stream.tokens)
        wanted = golden[stream.prompt][:num_tokens]
        assert tuple(stream.tokens) == wanted, f"{stream.prompt!r}: {stream.tokens} is not {wanted}"
        assert stream.num_finished == (stream.status == OK), stream
        assert not stream.is_late, f"tokens after the end: {stream}"


def gaps(streams: Sequence[Stream]) -> str:
    return histogram([stream.longest_gap for stream in streams if stream.status])


def histogram(longest: Sequence[float]) -> str:
    """How long clients waited at most, by stream: for people who read a test's output."""
    bounds = (0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0, float("inf"))
    counts = [sum(low <= gap < high for gap in longest) for low, high in pairwise((0.0, *bounds))]
    shown = [f"<{bound:g}s:{count}" for bound, count in zip(bounds, counts, strict=True) if count]
    return f"{len(longest)} streams, longest gap {max(longest):.2f} s; {' '.join(shown)}"
