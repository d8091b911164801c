"""Lines of both formats stay lines, whatever is in them and however long it is."""

import json
import logging
import sys

import pytest

from coordinator.api.requests.responses import Caller, Facts
from coordinator.api.shared.logging_setup import MAX_CHARS, JsonFormatter, TextFormatter
from coordinator.api.shared.request_log import request_fields

HOSTILE = 'a "b" \\c=d\n2026-01-01 00:00:00,000 INFO fake: line\r\x1b[31m\x00\u202e\u2028\x85\ud800é'
FORMATTERS = [TextFormatter(), JsonFormatter()]


def record_of(message: str, error: BaseException | None = None, **fields: object) -> logging.LogRecord:
    about = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("a.b", logging.INFO, "", 0, "%s", (message,), about)
    if fields:
        record.fields = fields
    return record


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_a_hostile_text_is_one_line(formatter: logging.Formatter) -> None:
    line = formatter.format(record_of(f"request {HOSTILE}", id=HOSTILE, model=HOSTILE))
    assert line.isprintable()
    line.encode()
    if isinstance(formatter, JsonFormatter):
        assert json.loads(line)["id"] == HOSTILE


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize("length", [MAX_CHARS + 1, 5_000_000])
def test_a_long_text_is_cut(formatter: logging.Formatter, length: int) -> None:
    line = formatter.format(record_of("x" * length, id="y" * length))
    assert len(line) < 2 * MAX_CHARS + 500
    assert f"... ({length - MAX_CHARS} more characters)" in line


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_what_an_exception_says_begins_no_line(formatter: logging.Formatter) -> None:
    try:
        raise ValueError(HOSTILE * 3)
    except ValueError as error:
        text = formatter.format(record_of("failed", error))
    text.encode()
    first, *rest = text.split("\n")
    assert "failed" in first
    if isinstance(formatter, JsonFormatter):
        assert rest == []
        assert "ValueError" in json.loads(first)["exception"]
    else:
        assert "Traceback" in rest[0]
        assert all(line.startswith("  ") and line.isprintable() for line in rest)


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_an_exception_of_megabytes_is_cut(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("x\n" * 1_000_000)
    except ValueError:
        record = record_of("failed")
        record.exc_info = sys.exc_info()
    assert len(formatter.format(record)) < 4 * MAX_CHARS


def test_numbers_that_are_none_are_still_json() -> None:
    line = JsonFormatter().format(record_of("request", seconds=float("nan"), most=float("inf")))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(line, parse_constant=refuse)["seconds"] == "nan"


def test_what_came_with_a_request_is_in_its_line() -> None:
    caller = Caller("own", given_ids={"x-request-id": "theirs", "x-correlation-id": "of all"})
    fields = request_fields(caller, Facts(), None, cancelled=False)
    assert list(fields)[:3] == ["id", "x-request-id", "x-correlation-id"]
