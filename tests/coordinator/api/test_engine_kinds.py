"""A module that puts fronts before an engine does so before both kinds, or is here with why one will do."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
FOLDERS = ("coordinator/api", "coordinator/server", "client")
PUTS = re.compile(r"\b(running|serving|both_fronts|Http|opening)\(")
CHOOSES = re.compile(r"BOTH_ENGINES|CLIENTS|KINDS")

# What is refused, or answered, before there is anything for an engine to do.
BEFORE_AN_ENGINE = {
    "client/test_diagnosis.py",
    "coordinator/api/grpc/test_tls.py",
    "coordinator/api/grpc/test_unknown_fields.py",
    "coordinator/api/http/test_bodies.py",
    "coordinator/api/http/test_cors.py",
    "coordinator/api/http/test_encodings.py",
    "coordinator/api/http/test_field_check.py",
    "coordinator/api/http/test_odd_json.py",
    "coordinator/api/http/test_paths.py",
    "coordinator/api/http/test_protocol.py",
    "coordinator/api/telemetry/test_metrics_conventions.py",
    "coordinator/api/test_limit_edges.py",
    "coordinator/api/test_limit_sizes.py",
    "coordinator/server/test_fronts_auth.py",
    "coordinator/server/test_fronts_ports.py",
    "coordinator/server/test_fronts_tls.py",
}
# Whatever a message says; test_random_streams.py has streams of both kinds of engine.
ANY_MESSAGE = {"coordinator/api/test_fuzz.py", "coordinator/api/http/test_fuzz.py"}
# An engine that says more at once than one request may leave unread.
ONE_READER = {"coordinator/api/test_long_prompt.py"}
APART = BEFORE_AN_ENGINE | ANY_MESSAGE | ONE_READER


def modules() -> dict[str, str]:
    """By their place, those that put fronts before an engine."""
    paths = [path for folder in FOLDERS for path in (TESTS / folder).rglob("test_*.py")]
    texts = {path.relative_to(TESTS).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    return {place: text for place, text in texts.items() if PUTS.search(text) and place != _SELF}


_SELF = Path(__file__).relative_to(TESTS).as_posix()


def test_every_module_is_for_both_kinds_of_engine() -> None:
    ones = {place for place, text in modules().items() if not CHOOSES.search(text)}
    assert ones == APART
