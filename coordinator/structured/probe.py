"""Tries grammars out in a process of its own, so that none can hang or crash the server.

The library cannot be stopped while it builds, and deep recursion ends its process. A grammar is text here,
whatever kind of constraint it was made from.
"""

import json
from collections.abc import Sequence

from coordinator.confined.errors import CrashedError, OutOfTimeError
from coordinator.confined.process import ConfinedProcess
from coordinator.engine.messages.errors import ConstraintError

MODULE = "coordinator.structured.probe_main"


class Probe:
    """One helper process, started when first needed. Not thread-safe: its caller takes turns."""

    def __init__(self, tokens: Sequence[bytes], seconds: float = 2.0) -> None:
        vocabulary = json.dumps([token.decode("latin-1") for token in tokens]).encode()
        self._process = ConfinedProcess(MODULE, vocabulary)
        self._seconds = seconds

    def check(self, grammar: str) -> None:
        """Raises ConstraintError for a grammar that does not build in time, NoProcessError."""
        try:
            refusal = self._process.ask(grammar.encode(), self._seconds).decode()
        except OutOfTimeError:
            raise ConstraintError(f"takes more than {self._seconds:g} s to compile") from None
        except CrashedError:
            raise ConstraintError("is too large or too deeply nested to compile") from None
        if refusal:
            raise ConstraintError(refusal)

    def close(self) -> None:
        """Ends the process; the next check starts another. Idempotent."""
        self._process.close()
