"""ConfinedEncoder: encodes texts with a tokenizer that is not known to be quick, in a process with limits."""

import threading
from array import array

from coordinator.api.text.tokenizer_main import DONE, LIMITS
from coordinator.confined.errors import CrashedError, OutOfTimeError
from coordinator.confined.process import ConfinedProcess
from moe_model.errors import BusyError, NoProcessError, TokenizerError, TokenizerLimitError

MODULE = "coordinator.api.text.tokenizer_main"
# By the clock, of one text; its time on a processor has a limit of its own, which is met first unless the
# machine is very busy.
ENCODE_SECONDS = 1.4
WAIT_SECONDS = 0.3
# By the clock: what is refused for good is not refused because the machine was busy.
_TRIAL_SECONDS = 10.0
_TRIAL = "Hello, world! 123"


class ConfinedEncoder:
    """A TextEncoder. Thread-safe: one text after the other. `step` is what is not known to be quick."""

    def __init__(self, core: str, step: str) -> None:
        """Tries it out. Raises TokenizerError for a file that cannot be built or used within the limits."""
        self._title = f"tokenizer.json: {step}"
        self._process = ConfinedProcess(MODULE, core.encode())
        self._turn = threading.Lock()
        try:
            self._ask(_TRIAL, _TRIAL_SECONDS)
        except NoProcessError as error:
            raise TokenizerError(str(error)) from None
        except TokenizerError:
            self.close()
            raise

    def encode(self, text: str) -> list[int]:
        """Its tokens' ids. Takes a millisecond and what the text takes, at worst ENCODE_SECONDS and
        WAIT_SECONDS.

        Raises TokenizerLimitError for a text that takes too much, TokenizerError for one that has no tokens,
        UnicodeEncodeError; BusyError, NoProcessError.
        """
        return self._ask(text, ENCODE_SECONDS)

    def close(self) -> None:
        """Ends the process; another text starts it again. Idempotent."""
        self._process.close()

    def _ask(self, text: str, seconds: float) -> list[int]:
        question = text.encode()
        if not self._turn.acquire(timeout=WAIT_SECONDS):
            raise BusyError("tokenizer.json: too many texts are being encoded")
        try:
            reply = self._process.ask(question, seconds)
        except OutOfTimeError:
            limit = f"takes more than {LIMITS.cpu_seconds:g} s"
            raise TokenizerLimitError(f"{self._title}: {limit} to encode the text") from None
        except CrashedError:
            limit = f"{LIMITS.address_space >> 20} MiB are not enough"
            raise TokenizerLimitError(f"{self._title}: {limit} to encode the text") from None
        finally:
            self._turn.release()
        if reply[:1] != DONE:
            raise TokenizerError(f"{self._title}: {reply[1:].decode(errors='replace')}")
        return array("I", reply[1:]).tolist()
