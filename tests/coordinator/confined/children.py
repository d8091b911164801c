"""Which processes this one has started and not buried."""

import os
import threading


def children() -> set[int]:
    """By whichever of its threads."""
    found: set[int] = set()
    for thread in threading.enumerate():
        try:
            with open(f"/proc/{os.getpid()}/task/{thread.native_id}/children") as file:
                found |= {int(pid) for pid in file.read().split()}
        except OSError:
            # It has ended meanwhile, and its children are the main thread's.
            continue
    return found
