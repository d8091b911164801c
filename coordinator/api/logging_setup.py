"""How log lines look: text for people, or one JSON object per line. Safe to show whatever is in them."""

import json
import logging
import time
from typing import TextIO

FORMATS = ("text", "json")


def configure(stream: TextIO, log_format: str, level: str) -> None:
    """For the whole process; called once, by the command that owns it."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Its comings and goings are ours to tell.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Three lines for each batch that a receiver does not take, where tracing_otlp.py has one for all of them.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)


def harmless(text: str) -> str:
    """The text without what moves a cursor, starts a line or turns its direction."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class TextFormatter(logging.Formatter):
    """Time, level, where, what; a traceback keeps its lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        record.message = harmless(record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One object per line, its times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= {"message": record.getMessage().partition(" ")[0], **fields}
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
