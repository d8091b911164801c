"""The probe's process: builds every grammar it is sent and says what came of it. python -m ... < frames

A frame is a length in four bytes, big end first, and that many bytes. The first one holds the vocabulary. It
ends with its input. What hangs, crashes or eats memory does so here and not in the server.
"""

import json
import resource
import signal
import struct
import sys
import threading
from typing import BinaryIO

from coordinator.structured.errors import ConstraintError
from coordinator.structured.library import build, make_tokenizer

MAX_ADDRESS_SPACE = 1 << 30
# Whoever asked has long given up, or is no more.
SECONDS_TO_LIVE = 10
# Smaller than any stack that a thread of the server has: what fits here does not overflow there.
STACK_BYTES = 1 << 20


def read_frame(stream: BinaryIO) -> bytes | None:
    """None at the end of the stream."""
    header = stream.read(4)
    return stream.read(struct.unpack(">I", header)[0]) if len(header) == 4 else None


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Replies with nothing to the vocabulary and to each good grammar, else with why it is refused."""
    vocabulary = read_frame(requests)
    if vocabulary is None:
        return
    tokenizer = make_tokenizer([token.encode("latin-1") for token in json.loads(vocabulary)])
    _reply(replies, "")
    while (grammar := read_frame(requests)) is not None:
        signal.alarm(SECONDS_TO_LIVE)
        try:
            build(tokenizer, grammar.decode()).deep_copy()
            reply = ""
        except ConstraintError as error:
            reply = str(error)
        signal.alarm(0)
        _reply(replies, reply)


def _reply(replies: BinaryIO, text: str) -> None:
    replies.write(frame(text.encode()))
    replies.flush()


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = MAX_ADDRESS_SPACE if hard == resource.RLIM_INFINITY else min(hard, MAX_ADDRESS_SPACE)
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=serve, args=(sys.stdin.buffer, sys.stdout.buffer))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
