"""What a load's requests are together: rates, waits and counts, as fields of an Observation.

The names are those of other serving benchmarks: `first_token_ms` is their TTFT, `per_token_ms` their TPOT,
`gap_ms` their ITL. The first token counts from when its request was due, not from when it was sent: a client
that sends late must not make a server look quick.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from scaling.loads.base import LoadRun, Timed, complete
from scaling.observation import QUANTILES, Spread

# Of `timeline`.
SLICE_S = 0.1
# A slice for each tenth of a second of a day: a clock that lies must not fill the memory.
MOST_SLICES = 864_000


def measures(run: LoadRun) -> dict[str, Any]:
    """Fields of an Observation by their names, without those of which the load knows nothing. A request that
    failed counts as such, and its tokens count as drawn; its prompt and its waits do not count."""
    good = complete(run.requests)
    num_tokens = sum(request.num_tokens for request in run.requests)
    gaps = [gap for request in good for gap in token_gaps(request)]
    seconds = max(run.seconds, 1e-9)
    return {
        "seconds": run.seconds,
        "num_requests": len(run.requests),
        "num_failed": len(run.requests) - len(good),
        "num_prompt_tokens": sum(request.num_prompt_tokens for request in good),
        "num_tokens": num_tokens,
        "tokens_per_s": num_tokens / seconds,
        "requests_per_s": len(good) / seconds,
        "first_token_ms": spread(1e3 * first_token(request) for request in good if request.token_s),
        "per_token_ms": spread(1e3 * per_token(request) for request in good if len(request.token_s) > 1),
        "gap_ms": spread(1e3 * gap for gap in gaps),
        "max_gap_ms": 1e3 * max(map(longest_wait, good), default=0.0),
        "timeline": timeline(run),
        "tokens_sha": tokens_sha(run.requests),
        "notes": run.notes,
        "errors": dict(Counter(request.error for request in run.requests if request.error is not None)),
    }


def spread(values: Iterable[float]) -> Spread | None:
    """None of no values. Quantiles between two values are interpolated, as numpy's default does."""
    found = np.fromiter(values, dtype=np.float64)
    if not len(found):
        return None
    quantiles = np.percentile(found, QUANTILES)
    return Spread(float(found.mean()), tuple(float(each) for each in quantiles), len(found))


def first_token(request: Timed) -> float:
    """Seconds from when it was due. Raises IndexError where no token came."""
    return request.token_s[0] - request.due_s


def per_token(request: Timed) -> float:
    """Seconds from the first token to the last, over the tokens after the first; 0 of a single one."""
    if request.num_tokens < 2 or len(request.token_s) < 2:
        return 0.0
    return (request.token_s[-1] - request.token_s[0]) / (request.num_tokens - 1)


def token_gaps(request: Timed) -> list[float]:
    """Seconds between each two tokens: of n tokens that came in one message, each took the n-th part of the
    time since the message before. Empty where the times of some tokens are not known, as of tools that tell
    only the first and the last."""
    if len(request.token_s) != request.num_tokens:
        return []
    messages = Counter(request.token_s)
    gaps: list[float] = []
    for before, after in itertools.pairwise(sorted(messages)):
        gaps += [(after - before) / messages[after]] * messages[after]
    return gaps


def longest_wait(request: Timed) -> float:
    """Seconds, the most between two messages with tokens; 0 where there was one."""
    return max((after - before for before, after in itertools.pairwise(sorted(request.token_s))), default=0.0)


def timeline(run: LoadRun) -> list[int]:
    """Tokens by the tenth of a second in which they came; empty where their times are not known."""
    times = [at for request in run.requests for at in request.token_s]
    if len(times) != sum(request.num_tokens for request in run.requests) or not times:
        return []
    num_slices = min(MOST_SLICES, int(max(*times, run.seconds) / SLICE_S) + 1)
    slices = [0] * num_slices
    for at in times:
        slices[min(num_slices - 1, max(0, int(at / SLICE_S)))] += 1
    return slices


def tokens_sha(requests: Sequence[Timed]) -> str:
    """Of all tokens in the order of requests, in hexadecimal; empty where they were not kept."""
    if not any(request.token_ids for request in requests):
        return ""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(",".join(map(str, request.token_ids)).encode() + b";")
    return digest.hexdigest()


def goodput(
    run: LoadRun,
    first_token_ms: float | None = None,
    per_token_ms: float | None = None,
    request_ms: float | None = None,
) -> float:
    """Requests a second that were complete and within each limit that is given, from when each was due.

    As defined by DistServe (Zhong et al., OSDI 2024, https://arxiv.org/abs/2401.09670)."""
    limits = (
        (first_token_ms, lambda request: first_token(request) if request.token_s else float("inf")),
        (per_token_ms, per_token),
        (request_ms, lambda request: request.end_s - request.due_s),
    )
    within = [
        request
        for request in complete(run.requests)
        if all(limit is None or 1e3 * wait(request) <= limit for limit, wait in limits)
    ]
    return len(within) / max(run.seconds, 1e-9)
