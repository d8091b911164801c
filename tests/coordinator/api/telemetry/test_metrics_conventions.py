"""Metrics as Prometheus' own tools want them: names, help, both formats; and the page's table of them."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from tests.coordinator.api.http_fakes import Http
from tests.coordinator.api.telemetry.test_names import EXPECTED, MODEL, fed, opened

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
# What scrapers send: Prometheus 2, Prometheus 3 with and without protobuf.
SCRAPERS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
)
NOT_OPENMETRICS = (
    "",
    "*/*",
    "text/plain",
    "text/html,application/xhtml+xml,*/*;q=0.8",
    "application/openmetrics-text;q=0, text/plain",
    "application/openmetrics-text;q=0.1, text/plain;q=0.9",
    "application/openmetrics-text;version=9.9.9",
    "application/openmetrics-text;q=high",
    ",;=,;q",
)
BASE_UNITS = {"bytes", "seconds"}
OTHER_UNITS = re.compile(
    "(pico|nano|micro|milli|centi|deci|deca|hecto|kilo|kibi|mega|mebi|giga|gibi|tera|tebi)?"
    "(amperes|bits|bytes|celsius|days|grams|hours|joules|meters|metres|minutes|ounces|pounds|seconds|volts|weeks)"
)
ABBREVIATIONS = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"}
TYPES = {"counter", "gauge", "histogram", "summary"}
PAGE = Path(__file__).parents[4] / "docs" / "operating.md"


def complaints(family: Metric) -> Iterator[str]:
    """What `promtool check metrics` says of a family, by rules of our own."""
    is_counter, words = family.type == "counter", family.name.split("_")
    if not family.documentation.strip():
        yield "no help"
    if not is_counter and family.name.endswith("_total"):
        yield "_total, and no counter"
    if is_counter and not all(sample.name.endswith("_total") for sample in family.samples):
        yield "a counter without _total"
    if family.type not in ("histogram", "summary") and words[-1] in ("bucket", "count", "sum"):
        yield "a histogram's suffix"
    if words[-1] == "created" or (words[-1] == "info" and any(each.value != 1 for each in family.samples)):
        yield "a reserved suffix"
    if family.name.endswith("_timestamp_seconds") and family.type != "gauge":
        yield "a gauge's suffix"
    if not re.fullmatch("[a-z][a-z0-9_]*", family.name):
        yield "not snake case"
    yield from (
        f"the unit {word}" for word in words if OTHER_UNITS.fullmatch(word) and word not in BASE_UNITS
    )
    yield from (f"the abbreviation {word}" for word in words if word in ABBREVIATIONS)
    yield from (f"the type {word}" for word in words if word in TYPES)
    for label in {label for sample in family.samples for label in sample.labels}:
        if not re.fullmatch("[a-z][a-z0-9_]*", label) or (label == "le" and family.type != "histogram"):
            yield f"the label {label}"


def rendered(*, accept: str = "", vllm_names: bool = False) -> tuple[str, str]:
    server = opened(vllm_names=vllm_names)
    fed(server)
    return server.text(accept)


def ours(families: Iterable[Metric]) -> list[Metric]:
    return [family for family in families if not family.name.startswith("vllm:")]


@pytest.mark.parametrize("vllm_names", [False, True])
def test_prometheus_has_nothing_to_complain_of(vllm_names: bool) -> None:
    families = ours(plain_families(rendered(vllm_names=vllm_names)[0]))
    assert {family.name: list(complaints(family)) for family in families if [*complaints(family)]} == {}
    assert len({family.name for family in families}) == len(families)


@pytest.mark.parametrize(
    ("name", "kind", "labels"),
    [
        ("a_total", "histogram", {}),
        ("a_count", "gauge", {}),
        ("a_milliseconds", "gauge", {}),
        ("a_ms", "gauge", {}),
        ("a_gauge", "gauge", {}),
        ("aB", "gauge", {}),
        ("a", "gauge", {"le": "1"}),
        ("a_info", "gauge", {}),
    ],
)
def test_the_rules_find_what_they_are_for(name: str, kind: str, labels: dict[str, str]) -> None:
    family = Metric(name, "help", kind)
    family.add_sample(name, labels, 2)
    assert [*complaints(family)]


@pytest.mark.parametrize("vllm_names", [False, True])
@pytest.mark.parametrize("accept", SCRAPERS)
def test_openmetrics_for_those_who_ask(accept: str, vllm_names: bool) -> None:
    text, content_type = rendered(accept=accept, vllm_names=vllm_names)
    assert content_type == OPENMETRICS
    assert text.endswith("\n# EOF\n")
    families = list(openmetrics_families(text))  # type: ignore[no-untyped-call]
    assert {family.name for family in ours(families)} == set(EXPECTED)
    same = {family.name: family for family in plain_families(rendered(vllm_names=vllm_names)[0])}
    for family in families:
        assert family.type == same[family.name].type
        assert {(s.name, *sorted(s.labels.items())) for s in family.samples} == {
            (s.name, *sorted(s.labels.items())) for s in same[family.name].samples
        }


@pytest.mark.parametrize("accept", NOT_OPENMETRICS)
def test_plain_text_for_all_others(accept: str) -> None:
    text, content_type = rendered(accept=accept)
    assert content_type == PLAIN
    assert "# EOF" not in text


async def test_the_route_looks_at_accept() -> None:
    async with Http().client() as client:
        assert (await client.get("/metrics", headers={"accept": "a/b"})).text == "# a/b\n"


def test_vllms_names_are_vllms() -> None:
    text = rendered(vllm_names=True)[0]
    assert "# TYPE vllm:iteration_tokens_total histogram" in text
    assert "# TYPE expertmesh_iteration_tokens histogram" in text
    assert "expertmesh_iteration_tokens_total" not in text


def without_remarks(row: str) -> str:
    return re.sub(r"\([^()]*\)", "", row)


def test_the_page_has_every_metric_with_its_labels() -> None:
    section = PAGE.read_text().partition("## Metrics\n")[2].partition("\n## ")[0]
    told = {}
    for row in re.findall(r"^\| \w+ \| (.*) \|$", section, re.MULTILINE):
        for name, labels in re.findall(r"`(\w+)`(?: by ((?:`\w+`(?: and )?)+))?", without_remarks(row)):
            told[name.removeprefix("expertmesh_")] = set(re.findall(r"\w+(?=`)", labels))
    expected = {}
    for name, (kind, labels) in EXPECTED.items():
        full = f"{name}_total" if kind == "counter" else name
        expected[full.removeprefix("expertmesh_")] = labels - MODEL
    assert told == expected
