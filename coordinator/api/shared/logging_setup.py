"""How log lines look: text for people, or one JSON object per line. Safe to show whatever is in them."""

import json
import logging
import math
import time
from typing import Any, TextIO

from expertmesh.shown_text import escaped

# Of a message, of one field and of a traceback: more of it helps no reader.
MAX_CHARS = 8 << 10


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


def cut(text: str) -> str:
    """The beginning and the end of what is too long."""
    more = len(text) - MAX_CHARS
    half = MAX_CHARS // 2
    return text if more <= 0 else f"{text[:half]}... ({more} more characters) ...{text[-half:]}"


class TextFormatter(logging.Formatter):
    """Time, level, where, what; a traceback keeps its lines, indented: none looks like one of the log."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        record.message = escaped(cut(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's own name
        lines = cut(super().formatException(ei)).split("\n")
        return "\n".join(f"  {escaped(line)}" for line in lines)


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
            line |= {"message": cut(record.getMessage().partition(" ")[0])}
            line |= {name: _plain(value) for name, value in fields.items()}
        else:
            line["message"] = cut(record.getMessage())
        if record.exc_info:
            line["exception"] = cut(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


def _plain(value: object) -> object:
    """Texts that are not too long; JSON has no numbers that are not finite."""
    if isinstance(value, str):
        return cut(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
