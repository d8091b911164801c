"""Backlog: what a front that does not keep up has not taken yet, merged per request, in bounded memory."""

from coordinator.engine.client.output_stream import Unread
from coordinator.engine.messages.output import Output

# Of all requests of a front together.
MAX_BACKLOG_BYTES = 256 << 20


class Backlog:
    """By the numbers of the requests. Used by one thread at a time."""

    def __init__(self, max_bytes: int = MAX_BACKLOG_BYTES) -> None:
        self._max_bytes = max_bytes
        self._unread: dict[int, Unread] = {}
        self._num_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._unread)

    def put(self, number: int, output: Output) -> bool:
        """False, and nothing is taken in, when too much waits. A failure is always taken in."""
        if output.failure is None and self._num_bytes > self._max_bytes:
            return False
        unread = self._of(number)
        before = unread.num_bytes
        is_taken = unread.put(output)
        self._num_bytes += unread.num_bytes - before
        return is_taken

    def put_token(self, number: int, index: int, token_id: int) -> bool:
        """As an output that is one token and nothing else."""
        if self._num_bytes > self._max_bytes:
            return False
        unread = self._of(number)
        before = unread.num_bytes
        is_taken = unread.put_token(index, token_id)
        self._num_bytes += unread.num_bytes - before
        return is_taken

    def take(self, num_bytes: int) -> list[tuple[int, Output]]:
        """All of some requests: about `num_bytes`, and at least one."""
        taken: list[tuple[int, Output]] = []
        while self._unread and num_bytes > 0:
            number, unread = next(iter(self._unread.items()))
            del self._unread[number]
            num_bytes -= unread.num_bytes
            self._num_bytes -= unread.num_bytes
            taken += [(number, output) for output in unread.take()]
        return taken

    def _of(self, number: int) -> Unread:
        unread = self._unread.get(number)
        if unread is None:
            unread = self._unread[number] = Unread("")
        return unread
