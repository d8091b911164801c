"""Why a process of the server has ended, in words for one line, and whether another may take its place."""

import re
import signal
from dataclasses import dataclass, field

# What faulthandler and our own processes write before they end.
_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_CURRENT = re.compile(r"^Current thread .*\n\s+File \"([^\"]+)\", line (\d+) in (\S+)", re.MULTILINE)
_MAX_CHARS = 300


def why_it_ended(code: int, last_words: str = "", num_oom_kills: int = 0) -> str:
    """`code` as subprocess has it; `last_words`: what the process wrote when it went wrong; `num_oom_kills`:
    how many processes the kernel has killed for want of memory meanwhile."""
    if code == -signal.SIGKILL and num_oom_kills:
        return "SIGKILL, by the kernel for want of memory"
    how = _signal_name(-code) if code < 0 else f"exit code {code}"
    words = _shown(last_words)
    return f"{how}, {words}" if words else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shown(last_words: str) -> str:
    """The kind of a crash and the innermost line of Python, or the last line."""
    fatal, current = _FATAL.search(last_words), _CURRENT.search(last_words)
    if fatal and current:
        path, line, name = current.groups()
        return f"{fatal[1]}, in {name} ({path.rpartition('/')[2]}:{line})"[:_MAX_CHARS]
    lines = last_words.strip().splitlines()
    return lines[-1][:_MAX_CHARS] if lines else ""


@dataclass(slots=True)
class RestartPolicy:
    """One that dies is started again at once, then after longer and longer waits; one that dies `most` times
    within `window` seconds is not."""

    most: int = 5
    window: float = 60.0
    first_wait: float = 0.5
    _deaths: list[float] = field(default_factory=list)

    def died(self, now: float) -> float | None:
        """Seconds until the next start; None: there is none."""
        self._deaths = [death for death in self._deaths if now - death < self.window] + [now]
        number = len(self._deaths)
        if number >= self.most:
            return None
        return 0.0 if number == 1 else self.first_wait * 2 ** (number - 2)
