"""Inside a process with limits: answers frame by frame what it is asked, until its input ends.

A frame is a length in four bytes, big end first, and that many bytes. What hangs, crashes or eats memory does
so here and not in the server. Imports nothing heavy, for it runs at every start of such a process.
"""

import resource
import signal
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

# Ends the process when the time of one answer is over; the parent knows it by its number.
OUT_OF_TIME = signal.SIGPROF


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the whole process: bytes of address space. Of one answer: seconds of CPU, and bytes of stack where
    the main thread's own is too many."""

    address_space: int
    cpu_seconds: float
    stack_bytes: int | None = None


def read_frame(stream: BinaryIO) -> bytes | None:
    """None at the end of the stream."""
    header = stream.read(4)
    return stream.read(struct.unpack(">I", header)[0]) if len(header) == 4 else None


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def run(answer: Callable[[bytes], bytes], limits: Limits) -> None:
    """Answers standard input on standard output within the limits; returns at the end of the input."""
    for kind, most in (
        (resource.RLIMIT_AS, limits.address_space),
        (resource.RLIMIT_CORE, 0),
        # What it says goes through a pipe: it writes no file.
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(kind, (bound, bound))
    signal.signal(OUT_OF_TIME, signal.SIG_DFL)
    if limits.stack_bytes is None:
        _serve(answer, limits.cpu_seconds)
        return
    threading.stack_size(limits.stack_bytes)
    thread = threading.Thread(target=_serve, args=(answer, limits.cpu_seconds))
    thread.start()
    thread.join()


def _serve(answer: Callable[[bytes], bytes], cpu_seconds: float) -> None:
    """Says with an empty frame that it is there."""
    questions, replies = sys.stdin.buffer, sys.stdout.buffer
    reply = b""
    while True:
        replies.write(frame(reply))
        replies.flush()
        question = read_frame(questions)
        if question is None:
            return
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        reply = answer(question)
        signal.setitimer(signal.ITIMER_PROF, 0)
