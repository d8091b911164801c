"""Several RequestObservers as one."""

from collections.abc import Sequence

from coordinator.api.requests.responses import Caller, Facts, RequestObserver
from coordinator.api.shared.errors import ApiError


class RequestObservers:
    """Tells each in turn. The first one that traces a request gives its number."""

    def __init__(self, observers: Sequence[RequestObserver]) -> None:
        self._observers = tuple(observers)

    def started(self, caller: Caller, facts: Facts) -> int | None:
        numbers = [observer.started(caller, facts) for observer in self._observers]
        return next((number for number in numbers if number is not None), None)

    def finished(self, caller: Caller, facts: Facts, error: ApiError | None, *, cancelled: bool) -> None:
        for observer in self._observers:
            observer.finished(caller, facts, error, cancelled=cancelled)
