"""Admission: how much may run and wait; a request that does not fit is refused at once.

Lives on one event loop. The limits are a server's: what its other fronts have admitted counts as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from coordinator.api.shared.errors import ApiError, Quota, Reason
from coordinator.config.service import AdmissionConfig
from coordinator.metrics.ledger import Ledger


class Ticket:
    """One request's place. Grows as more becomes known of the request, and shrinks when it has begun."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._num_sequences = 0
        self._num_tokens = 0

    def take_sequences(self, count: int) -> None:
        """Raises QUEUE_FULL unless there is room for all of them, INVALID_FIELD where there never is."""
        self._admission.add_sequences(count)
        self._num_sequences += count

    def wait_with(self, num_tokens: int) -> None:
        """Counts the prompts as waiting. Raises QUEUE_FULL when too much waits already."""
        self._admission.add_tokens(num_tokens)
        self._num_tokens = num_tokens

    def started(self, num_tokens: int) -> None:
        """The first output of a prompt is there: so many tokens wait no longer."""
        self._admission.add_tokens(-num_tokens)
        self._num_tokens -= num_tokens

    def release(self) -> None:
        self.started(self._num_tokens)
        self._admission.add_sequences(-self._num_sequences)
        self._num_sequences = 0


class Admission:
    """Counts what runs and waits. Adds first and looks then: of two fronts that ask for the last place at
    once both may be refused, and never both be admitted."""

    def __init__(self, config: AdmissionConfig | None = None, ledger: Ledger | None = None) -> None:
        self._config = config or AdmissionConfig()
        ledger = ledger or Ledger()
        self._sequences = ledger.held("sequences")
        self._waiting_tokens = ledger.held("waiting_tokens")

    @property
    def num_sequences(self) -> int:
        """Of all fronts."""
        return int(self._sequences.total())

    @property
    def num_waiting_tokens(self) -> int:
        """Of all fronts."""
        return int(self._waiting_tokens.total())

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            ticket.release()

    def add_sequences(self, count: int) -> None:
        most = self._config.max_requests
        if count > most:
            message = f"{count} sequences are more than this server ever takes, {most}"
            raise ApiError.of(Reason.INVALID_FIELD, message, field="sampling.num_sequences")
        others = int(self._sequences.add(count)) - count
        if count > 0 and others + count > most:
            self._sequences.add(-count)
            raise _full("requests", f"{others} of {most} sequences run or wait")

    def check_room(self) -> None:
        """Raises QUEUE_FULL where not even one more sequence fits: for before anything costs anything."""
        most = self._config.max_requests
        if self.num_sequences >= most:
            raise _full("requests", f"{self.num_sequences} of {most} sequences run or wait")

    def add_tokens(self, count: int) -> None:
        """A prompt longer than the limit is taken when no other waits: it can never become shorter."""
        most = self._config.max_tokens
        others = int(self._waiting_tokens.add(count)) - count
        if count > 0 and others and others + count > most:
            self._waiting_tokens.add(-count)
            raise _full("tokens", f"{others} of {most} prompt tokens wait")


def _full(subject: str, description: str) -> ApiError:
    message = f"the queue is full: {description}; try again later"
    return ApiError.of(Reason.QUEUE_FULL, message, quota=Quota(subject, description))
