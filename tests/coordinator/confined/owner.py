"""A process that owns a process with limits, asks it to spin, and says its pid. See test_process.py."""

import sys
import threading

from coordinator.confined.process import ConfinedProcess
from tests.coordinator.confined.children import children


def main() -> None:
    process = ConfinedProcess(sys.argv[1], b"")
    process.ask(b"hello", 60)
    threading.Thread(target=process.ask, args=(sys.argv[2].encode(), 60), daemon=True).start()
    sys.stdout.write(f"{children().pop()}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
