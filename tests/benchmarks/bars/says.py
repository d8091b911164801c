"""A benchmark that says what it is told to, and ends with a code; "error: " goes to its log, and "clean=FILE"
makes it hang until it is interrupted, which it then writes there; before that "mute" closes its output. A
negative code is a signal."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path


def say(line: str) -> None:
    if line.startswith("error: "):
        print(line.removeprefix("error: "), file=sys.stderr)
    elif line == "mute":
        os.close(sys.stdout.fileno())
    elif line.startswith("clean="):
        hang(Path(line.removeprefix("clean=")))
    else:
        print(line, flush=True)


def hang(file: Path) -> None:
    try:
        with suppress(OSError):
            print("hanging", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        file.write_text("interrupted", encoding="utf-8")
        raise


if __name__ == "__main__":
    code, *lines = sys.argv[1:]
    for each in lines:
        say(each)
    if int(code) < 0:
        os.kill(os.getpid(), -int(code))
    sys.exit(int(code))
