"""One line in the log for every request: who, what came of it, and how long it took. Never what it said."""

import json
import logging
import re
import time
from collections.abc import Callable, Mapping

from coordinator.api.requests.responses import Caller, Facts
from coordinator.api.shared.errors import ApiError, Code, Reason, translate
from moe_model.errors import WorldError

logger = logging.getLogger(__name__)

# Most values: all that is printable in ASCII but a space, a quote and a backslash.
_COMMON = re.compile(r"[!#-\[\]-~]*")


# Of refusals, in a second; the next line after it says how many others there were.
MAX_REFUSALS = 10


class RequestLog:
    """A RequestObserver. The fields are also on the record, for logs that are JSON.

    Under overload refusals are many, say the same, and a line of each costs as much as all else of it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._num_refusals = self._num_left_out = 0

    def started(self, caller: Caller, facts: Facts) -> int | None:
        return None

    def finished(self, caller: Caller, facts: Facts, error: ApiError | None, *, cancelled: bool) -> None:
        refused = error is not None and error.reason is Reason.QUEUE_FULL
        if refused and self._is_left_out():
            return
        fields = request_fields(caller, facts, error, cancelled=cancelled)
        if refused:
            fields["refusals_left_out"] = self._num_left_out or None
            self._num_left_out = 0
        log_fields(logger, "request", fields)

    def _is_left_out(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._num_refusals = second, 0
        self._num_refusals += 1
        self._num_left_out += self._num_refusals > MAX_REFUSALS
        return self._num_refusals > MAX_REFUSALS


def log_fields(
    to: logging.Logger, what: str, fields: Mapping[str, object], level: int = logging.INFO
) -> None:
    """One line of `name=value`, where a value with anything but plain characters is quoted as JSON has it.
    What says nothing is left out."""
    told = {name: value for name, value in fields.items() if value not in ("", None)}
    text = " ".join(f"{name}={_plain(str(value))}" for name, value in told.items())
    to.log(level, "%s %s", what, text, extra={"fields": told})


def log_details(error: Exception, request_id: str) -> None:
    """Of what ended a request, the part that its client is not told."""
    if isinstance(error, WorldError):
        logger.warning("request %s: %s", request_id, error)
    elif translate(error, request_id).code is Code.INTERNAL:
        logger.error("request %s: internal error", request_id, exc_info=error)


def request_fields(
    caller: Caller, facts: Facts, error: ApiError | None, *, cancelled: bool
) -> dict[str, object]:
    """What is logged; nothing in it can hold a prompt, an output or a key."""
    code = error.code.value if error is not None else "CANCELLED" if cancelled else "OK"
    return {
        "id": caller.request_id,
        **caller.given_ids,
        "peer": caller.peer,
        "front": caller.transport,
        "streams": caller.streams,
        "key": caller.key_id,
        "model": facts.model,
        "code": code,
        "reason": "" if error is None else error.reason.value,
        "finish": ",".join(facts.finish_reasons[index] for index in sorted(facts.finish_reasons)),
        "prompt_tokens": facts.prompt_tokens,
        "cached_tokens": facts.cached_tokens,
        "tokens": facts.completion_tokens,
        "queue_seconds": _rounded(facts.queue_time),
        "first_token_seconds": _rounded(facts.time_to_first_token),
        "seconds": _rounded(facts.total_time),
    }


def _plain(text: str) -> str:
    """As it is, or quoted where it would be taken for more than one value."""
    if _COMMON.fullmatch(text):
        return text
    return json.dumps(text) if any(char in ' "\\' or not char.isprintable() for char in text) else text


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
