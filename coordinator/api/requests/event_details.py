"""Logprobs and routing as messages, and how large messages are cut into several.

No message exceeds MAX_MESSAGE_BYTES: clients take 4 MiB by default.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.engine.messages.output import RoutedExperts, TokenLogprobs
from expertmesh.v1 import generation_pb2 as pb

MAX_MESSAGE_BYTES = 1 << 20
_TYPES = {1: pb.RoutedExperts.ELEMENT_TYPE_UINT8, 2: pb.RoutedExperts.ELEMENT_TYPE_UINT16}


@dataclass(frozen=True, slots=True)
class LogprobWriter:
    """TokenLogprobs -> messages; `token_bytes` gives the exact bytes of a token."""

    token_bytes: Callable[[int], bytes]

    def message(self, logprobs: TokenLogprobs) -> pb.TokenLogprob:
        return pb.TokenLogprob(
            token_id=logprobs.token_id,
            token_bytes=self.token_bytes(logprobs.token_id),
            logprob=logprobs.logprob,
            rank=logprobs.rank,
            top=[
                pb.TopLogprob(token_id=token_id, token_bytes=self.token_bytes(token_id), logprob=logprob)
                for token_id, logprob in logprobs.top
            ],
        )

    def first(self, token_id: int) -> pb.TokenLogprob:
        """The first prompt token, which nothing predicts."""
        return pb.TokenLogprob(token_id=token_id, token_bytes=self.token_bytes(token_id))


def in_pieces(messages: Sequence[pb.TokenLogprob]) -> Iterator[list[pb.TokenLogprob]]:
    """The same messages in runs that fit into one message each."""
    piece: list[pb.TokenLogprob] = []
    num_bytes = 0
    for message in messages:
        # With tag and length.
        size = message.ByteSize() + 6
        if piece and num_bytes + size > MAX_MESSAGE_BYTES - 4096:
            yield piece
            piece, num_bytes = [], 0
        piece.append(message)
        num_bytes += size
    if piece:
        yield piece


def routed_pieces(traces: Sequence[RoutedExperts]) -> Iterator[pb.RoutedExperts]:
    """Messages of consecutive tokens: neighbours are joined, what is too long is cut."""
    for trace in _joined(traces):
        num_tokens, num_layers, top_k = trace.ids_TLK.shape
        per_piece = max(1, (MAX_MESSAGE_BYTES - 4096) // max(1, num_layers * top_k * trace.ids_TLK.itemsize))
        for start in range(0, num_tokens, per_piece):
            yield _routed(
                RoutedExperts(trace.first_position + start, trace.ids_TLK[start : start + per_piece])
            )


def _joined(traces: Sequence[RoutedExperts]) -> list[RoutedExperts]:
    runs: list[list[RoutedExperts]] = []
    for trace in traces:
        if runs and runs[-1][-1].first_position + len(runs[-1][-1].ids_TLK) == trace.first_position:
            runs[-1].append(trace)
        else:
            runs.append([trace])
    return [
        RoutedExperts(run[0].first_position, np.concatenate([trace.ids_TLK for trace in run])) for run in runs
    ]


def _routed(trace: RoutedExperts) -> pb.RoutedExperts:
    ids_TLK = trace.ids_TLK
    little_endian = ids_TLK.astype(ids_TLK.dtype.newbyteorder("<"), copy=False)
    num_tokens, num_layers, top_k = ids_TLK.shape
    return pb.RoutedExperts(
        data=little_endian.tobytes(),
        element_type=_TYPES[ids_TLK.itemsize],
        first_position=trace.first_position,
        num_tokens=num_tokens,
        num_layers=num_layers,
        experts_per_token=top_k,
    )
