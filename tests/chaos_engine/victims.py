"""Processes that look like expert workers', to be broken."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Spins, so that a quota meets something; a thread, so that there is more than one to stop.
SPIN = """
import sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("up", flush=True)
while True:
    pass
"""
# Takes memory, a page after the other, as soon as a line comes.
GROW = """
import sys
print("up", flush=True)
sys.stdin.readline()
kept = []
while True:
    kept.append(bytearray(1 << 16))
"""


@contextmanager
def victim(program: str = SPIN, name: str = "ray::ExpertActor") -> Iterator[subprocess.Popen[str]]:
    """It runs, under a name that its command line shows."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()
