"""Which of the two text formats of metrics a scraper prefers."""

from collections.abc import Mapping

OPENMETRICS, PLAIN = "application/openmetrics-text", "text/plain"
VERSIONS = ("", "0.0.1", "1.0.0")


def wants_openmetrics(accept: str) -> bool:
    """By the weights of an Accept header, whatever is in it; who prefers neither gets plain text."""
    weights = {OPENMETRICS: 0.0, PLAIN: 0.0}
    for offer in accept.split(","):
        kind, *parts = (part.strip() for part in offer.split(";"))
        named = {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in parts)}
        if kind == PLAIN or (kind == OPENMETRICS and named.get("version", "") in VERSIONS):
            weights[kind] = max(weights[kind], _weight(named))
    return weights[OPENMETRICS] > 0 and weights[OPENMETRICS] >= weights[PLAIN]


def _weight(named: Mapping[str, str]) -> float:
    try:
        return float(named.get("q", "1"))
    except ValueError:
        return 0.0
