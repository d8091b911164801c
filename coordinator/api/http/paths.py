"""Paths that there are not: what was meant, or what this server has not, by name."""

import re
from collections.abc import Collection
from difflib import get_close_matches

_GENERATES = "it generates text, at /v1/completions and /v1/chat/completions"
# What clients and frameworks ask other servers for.
NOT_HERE = (
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/edits",
    "/v1/moderations",
    "/v1/rerank",
    "/v1/score",
    "/v1/files",
    "/v1/batches",
    "/v1/assistants",
    "/v1/threads",
    "/v1/fine_tuning/jobs",
    "/v1/realtime",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/images/generations",
    "/v1/load_lora_adapter",
    "/api/chat",
    "/api/generate",
    "/api/tags",
    "/generate",
    "/generate_stream",
    "/invocations",
    "/pooling",
    "/classify",
)
# Longer ones are not looked at.
MAX_PATH_CHARS = 200
_LIKENESS = 0.8
_PREFIX = "/v1"


def nothing_there(path: str, routes: Collection[str]) -> str:
    """What to say of a path that is none of the routes, which may have a parameter in braces. Nothing of the
    path itself is repeated."""
    if not any(route.startswith(_PREFIX) for route in routes):
        return f"there is no such path; this port has {', '.join(routes)}"
    plain = re.sub("/+", "/", path[: MAX_PATH_CHARS + 1].lower()).rstrip("/")
    if len(plain) <= MAX_PATH_CHARS:
        missing = _ending(plain, NOT_HERE)
        meant = _ending(plain, [route for route in routes if "{" not in route])
        if missing and len(missing) > len(meant):
            return f"this server has no {missing}; {_GENERATES}"
        meant = meant or _with_parameter(plain, routes) or _alike(plain, routes)
        if meant:
            return f"there is no such path; did you mean {meant}?"
    return "there is no such path; the API is under /v1, as in /v1/models"


def _ending(path: str, known: Collection[str]) -> str:
    """The longest one that the path ends with, whatever is before it, or that only lacks /v1."""
    found = [each for each in known if path.endswith((each, each.removeprefix(_PREFIX)))]
    return max(found, key=len, default="")


def _with_parameter(path: str, routes: Collection[str]) -> str:
    for route in routes:
        stem, brace, _ = route.partition("{")
        if brace and f"{path}/".startswith((stem, stem.removeprefix(_PREFIX))):
            return f"{stem}NAME"
    return ""


def _alike(path: str, routes: Collection[str]) -> str:
    longer = [route for route in routes if len(path) > len(_PREFIX) and route.startswith(f"{path}/")]
    close = get_close_matches(path, [route for route in routes if "{" not in route], 1, _LIKENESS)
    return next(iter([*close, *longer]), "")
