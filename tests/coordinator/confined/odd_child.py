"""A process with limits that does what it is asked, good or bad."""

import os
from pathlib import Path

from coordinator.confined.child import Limits, run

MIB = 1 << 20


def answer(question: bytes) -> bytes:
    match question.split():
        case [b"spin"]:
            while True:
                pass
        case [b"eat", mib]:
            return b"%d" % len(bytearray(int(mib) * MIB))
        case [b"crash"]:
            os.abort()
        case [b"reply", mib]:
            return bytes(int(mib) * MIB)
        case [b"environment"]:
            return b"\n".join(Path("/proc/self/environ").read_bytes().split(b"\0"))
        case [b"write", path]:
            Path(os.fsdecode(path)).write_bytes(b"x")
    return question


if __name__ == "__main__":
    run(answer, Limits(address_space=128 * MIB, cpu_seconds=0.2))
