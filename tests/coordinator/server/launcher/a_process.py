"""A process for the launcher's tests; its last argument says what it does once it has begun.

python -m tests.coordinator.server.launcher.a_process CHANNEL LAST_WORDS FOLDER WHAT
"""

import faulthandler
import os
import sys
import threading
from pathlib import Path

from coordinator.server.launcher.control import Control, run
from coordinator.server.launcher.messages import Begin, Drain, Drained, FrontReady
from moe_model.errors import ConfigError


async def role(control: Control, begin: Begin) -> None:
    """Says FrontReady with its pid, and does what it shall; `serve`: Drained for each Drain."""
    what = sys.argv[4]
    if what == "refuse":
        raise ConfigError("--fronts: not today")
    if what == "crash-at-once":
        os._exit(7)
    control.listen(Drain, lambda _: control.tell(Drained()))
    control.tell(FrontReady(os.getpid()))
    match what:
        case "raise":
            raise ValueError("not foreseen")
        case "segfault":
            faulthandler._sigsegv()  # type: ignore[attr-defined]
        case "exit":
            os._exit(3)
        case "return":
            return
        case "hang":
            # Holds the loop: it hears nothing any more.
            threading.Event().wait()
        case "leave-file":
            (begin.folder / "file").write_bytes(b"x")
    await control.stopped.wait()
    if what == "say-goodbye":
        Path(begin.folder / "goodbye").touch()


if __name__ == "__main__":
    os._exit(run(role))
