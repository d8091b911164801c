"""Where a process of the command begins, as `expertmesh` and as `python -P -m expertmesh.cli`.

Imports next to nothing: until a command hears Ctrl-C itself, it ends the process as the system does, with
nothing said; Python would break off whatever it is importing, and show where.
"""

import importlib
import signal


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code (1 for our errors, 2 for usage, 130 for Ctrl-C). Without
    `argv`, the arguments are the process's, which ends with it."""
    # Under `nohup` and its like it is ignored, and stays so.
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    code: int = importlib.import_module("expertmesh.command_line").main(argv)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
