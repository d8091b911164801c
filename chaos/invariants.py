"""What must hold for every history, whatever was broken meanwhile. Pure.

The checks of Jepsen's and NVIDIA Dynamo's fault tests: tokens gapless and in order, nothing after the end,
one end each, the tokens of a run without faults or a beginning of them and an error, all accounted for.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from chaos.history import OK, Stream


def violations(stream: Stream) -> Iterator[str]:
    """What is wrong with one stream, one line each."""
    for expected, index in enumerate(stream.indices):
        if index != expected:
            yield f"token {index} came where token {expected} was due"
            break
    if any(later < earlier for earlier, later in zip(stream.times, stream.times[1:], strict=False)):
        yield "a token came before the one ahead of it"
    if stream.token_ids and stream.admitted is None:
        yield "tokens came before the request was admitted"
    yield from _end_violations(stream)


def _end_violations(stream: Stream) -> Iterator[str]:
    num_tokens = len(stream.token_ids)
    if len(stream.ends) != 1 and not (stream.was_cancelled and not stream.ends):
        yield f"{len(stream.ends)} terminal statuses"
    for finish in stream.finishes[:1]:
        if num_tokens > finish:
            yield f"{num_tokens - finish} tokens came after the sequence had finished"
    for end in stream.ends[:1]:
        if num_tokens > end.after:
            yield f"{num_tokens - end.after} tokens came after the terminal status"
        if end.code == OK and len(stream.finishes) != 1:
            yield f"OK, and the sequence finished {len(stream.finishes)} times"
        if end.num_tokens is not None and end.num_tokens != end.after:
            yield f"{end.after} tokens came, {end.num_tokens} were counted by the server"


def num_changed(stream: Stream, goldens: Sequence[Sequence[int]]) -> int:
    """Tokens that are not those of the likest golden output; missing and surplus ones of a complete stream
    count as well."""
    return min(_num_other(stream, golden) for golden in goldens)


def _num_other(stream: Stream, golden: Sequence[int]) -> int:
    other = sum(a != b for a, b in zip(stream.token_ids, golden, strict=False))
    surplus = len(stream.token_ids) - len(golden)
    return other + (abs(surplus) if stream.outcome == "completed" else max(0, surplus))


def unaccounted(streams: Sequence[Stream], num_sent: int) -> Iterator[str]:
    """Unless completed + failed + cancelled = admitted, and all others were refused."""
    outcomes = Counter(stream.outcome for stream in streams)
    ended = outcomes.total() - outcomes["open"]
    if ended != num_sent:
        yield f"{num_sent} requests were sent and {ended} have ended: {dict(outcomes)}"


def left_over(running: int, waiting: int, kv_usage: float) -> Iterator[str]:
    """What a server still holds though no request is left."""
    if running:
        yield f"{running} sequences run"
    if waiting:
        yield f"{waiting} sequences wait"
    if kv_usage:
        yield f"{100 * kv_usage:.2f} % of the KV cache are in use"
