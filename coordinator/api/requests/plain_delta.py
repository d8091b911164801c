"""The commonest event, a delta of tokens and text and nothing else, as a message or as the bytes of one.

A stream sends one for each token, and making protobuf's objects takes four times as long as writing bytes.
"""

from collections.abc import Sequence

from expertmesh.v1 import generation_pb2 as pb

Event = pb.GenerateStreamResponse

_LENGTH_DELIMITED = 2


def _tag(number: int, kind: int = 0) -> bytes:
    """What stands before a field on the wire; each field here has a small number."""
    return bytes((number << 3 | kind,))


_DELTA = _tag(Event.DELTA_FIELD_NUMBER, _LENGTH_DELIMITED)
_INDEX = _tag(pb.SequenceDelta.INDEX_FIELD_NUMBER)
_TEXT = _tag(pb.SequenceDelta.TEXT_FIELD_NUMBER, _LENGTH_DELIMITED)
_NUM_TOKENS = _tag(pb.SequenceDelta.NUM_TOKENS_FIELD_NUMBER)
_TOKEN_IDS = _tag(pb.SequenceDelta.TOKEN_IDS_FIELD_NUMBER, _LENGTH_DELIMITED)


def plain_event(index: int, text: str, num_tokens: int, token_ids: Sequence[int]) -> Event:
    delta = pb.SequenceDelta(index=index, text=text, num_tokens=num_tokens, token_ids=token_ids)
    return Event(delta=delta)


def plain_bytes(index: int, text: str, num_tokens: int, token_ids: Sequence[int]) -> bytes:
    """As `plain_event`, serialised. Fields that are 0 or empty are left out, as protobuf does."""
    body = _INDEX + _varint(index) if index else b""
    if text:
        data = text.encode()
        body += _TEXT + _varint(len(data)) + data
    if num_tokens:
        body += _NUM_TOKENS + _varint(num_tokens)
    if token_ids:
        packed = _varint(token_ids[0]) if len(token_ids) == 1 else b"".join(map(_varint, token_ids))
        body += _TOKEN_IDS + _varint(len(packed)) + packed
    return _DELTA + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, all but the last with the eighth bit set."""
    if number < 1 << 14:
        return _SHORT[number]
    return bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)


_SHORT = [bytes((n,)) if n < 1 << 7 else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(1 << 14)]
