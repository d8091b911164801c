"""Scenario files: ours are good, and what is wrong in one is named in one line."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from chaos import events
from chaos.scenario import (
    SCENARIOS,
    Course,
    Expect,
    LoadSpec,
    Scenario,
    Setup,
    Soak,
    changed,
    find,
    load,
    names,
    parse,
)
from moe_model.errors import ConfigError

SMALL = """
about = "small"
[[event]]
do = "kill"
rank = 1
after_tokens = 10
"""


def parsed(text: str, *, allow_exec: bool = False) -> Scenario:
    return parse(tomllib.loads(text), "small", "small.toml", allow_exec=allow_exec)


def test_those_that_come_with_the_package() -> None:
    assert {
        "kill-one",
        "kill-without-replica",
        "hang",
        "stalls",
        "slow",
        "out-of-memory",
        "rolling-restart",
        "scale",
        "replace-expert",
        "soak",
    } == set(names())


@pytest.mark.parametrize("name", [path.stem for path in SCENARIOS.glob("*.toml")])
def test_each_of_them_says_what_it_is_and_can_fail(name: str) -> None:
    scenario = changed(find(name), expert_file="expert.safetensors")
    assert scenario.course.about
    assert scenario.events or scenario.soak
    assert scenario.expect.max_gap is not None or scenario.expect.max_gap_added is not None


def test_defaults_and_values() -> None:
    scenario = parsed(SMALL + "[load]\nstreams = 3\nprompts = ['a', 'b']\n[expect]\nmax_gap = 2\n")
    (event,) = scenario.events
    assert event == events.Kill(rank=1, after_tokens=10)
    assert (scenario.load.streams, scenario.load.prompts) == (3, ("a", "b"))
    assert (scenario.expect.max_gap, scenario.expect.max_lost) == (2, 0)
    assert scenario.course.baseline == 3.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "small.toml: 'colour' is not a key of this table"),
        ("[colour]\na = 1", "small.toml: there is no table [colour]"),
        ("[load]\ncolour = 1", "small.toml: load: 'colour' is not a key"),
        ("[load]\nstreams = 0", "small.toml: load: streams: 0 is not in [1, 1024]"),
        ("[load]\nstreams = 1.5", "small.toml: load: streams: '1.5' is not a whole number"),
        ("[load]\nstreams = true", "small.toml: load: streams: 'True' is not a whole number"),
        ("[load]\nloop = 'both'", "small.toml: load: loop: 'both' is not 'closed' or 'open'"),
        ("[load]\nprompts = []", "small.toml: load: prompts: '[]' is not a list of a text"),
        ("[load]\nprompts = 'a'", "small.toml: load: prompts: 'a' is not a list of a text"),
        ("[load]\nrate = nan", "small.toml: load: rate: nan is not in"),
        ("load = 3", "small.toml: load is not a table"),
        ("baseline = -1", "small.toml: baseline: -1 is not in"),
        ("about = 1", "small.toml: about: '1' is not a text"),
        ("[soak]", "small.toml: needs either [[event]] or [soak]"),
        ("[expect]\nmax_lost = 'none'", "small.toml: expect: max_lost: 'none' is not a whole number"),
    ],
)
def test_what_is_wrong_beside_the_events(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(text + "\n" + SMALL.replace('about = "small"', "") if "[" not in text else SMALL + text)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ("do = 'explode'", "event 1: do: 'explode' is not one of kill, stop"),
        ("rank = 1", "event 1: do: 'None' is not one of"),
        ("do = 'kill'\nseconds = 1", "event 1 (kill): 'seconds' is not a key of this table (at, after,"),
        ("do = 'kill'\nrank = 'all'", "event 1 (kill): rank: 'all' is not a whole number or 'random'"),
        ("do = 'kill'\nrank = -1", "event 1 (kill): rank: -1 is not in"),
        ("do = 'kill'\nat = 1\nafter = 1", "event 1 (kill): at, after and after_tokens exclude each other"),
        ("do = 'scale'", "event 1 (scale): workers is missing"),
        ("do = 'slow'\nshare = 1.5", "event 1 (slow): share: 1.5 is not in [0.01, 0.95]"),
        ("do = 'exec'\ncommand = ['true']", "event 1: do: 'exec' is for tests only"),
    ],
)
def test_what_is_wrong_with_an_event(event: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(f"[[event]]\n{event}")
    assert str(error.value).startswith(f"small.toml: {said}")


@pytest.mark.parametrize("text", ["", "[[event]]\ndo = 'wait-ready'\n[soak]\n"])
def test_either_events_or_a_soak(text: str) -> None:
    with pytest.raises(ConfigError, match=r"needs either \[\[event\]\] or \[soak\]"):
        parsed(text)


def test_events_that_are_no_list() -> None:
    with pytest.raises(ConfigError, match=r"event is not a list of tables; write \[\[event\]\]"):
        parsed("[event]\ndo = 'kill'")


def test_one_exchange_at_most() -> None:
    with pytest.raises(ConfigError, match="more than one replace"):
        parsed("[[event]]\ndo = 'replace'\n[[event]]\ndo = 'replace'")


def test_a_soak_pauses_from_less_to_more() -> None:
    with pytest.raises(ConfigError, match="the lower bound comes first"):
        parsed("[soak]\npause = [3.0, 1.0]")


def test_exec_is_known_to_tests() -> None:
    (event,) = parsed("[[event]]\ndo = 'exec'\ncommand = ['true', 'a']", allow_exec=True).events
    assert event == events.Exec(command=("true", "a"))


def test_a_file_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SMALL)
    assert find(str(path)).name == "mine"
    path.write_text("a = [")
    with pytest.raises(ConfigError, match=r"mine\.toml: is not TOML"):
        load(path)
    path.write_bytes(b"about = '\xff'")
    with pytest.raises(ConfigError, match=r"mine\.toml: is not TOML"):
        load(path)
    with pytest.raises(ConfigError, match=r"there\.toml: No such file"):
        find(str(tmp_path / "there.toml"))
    with pytest.raises(ConfigError, match="'nothing' is neither a file nor one of"):
        find("nothing")
    path.write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        load(path)


def test_the_page_has_every_key_and_an_example_that_is_good() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chaos.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(parsed(example).events) == 4
    told = set(re.findall(r"`([a-z0-9_-]+)`", page)) | set(re.findall(r'"([a-z-]+)"`', page))
    kinds = (Course, Setup, LoadSpec, Soak, Expect, *events.KINDS.values())
    keys = {field.name for kind in kinds for field in fields(kind)} | set(events.KINDS) | set(names())
    assert keys - told == set()


def test_what_the_command_line_changes() -> None:
    scenario = changed(find("kill-one"), duration=9.0, seed=5, streams=2)
    assert (scenario.course.duration, scenario.course.seed) == (9.0, 5)
    assert (scenario.load.seed, scenario.load.streams) == (5, 2)
    assert changed(find("kill-one")) == find("kill-one")


def test_a_soak_must_last_longer_than_its_edges() -> None:
    with pytest.raises(ConfigError, match="a soak needs more"):
        changed(find("soak"), duration=5.0)


def test_an_exchange_needs_a_file() -> None:
    with pytest.raises(ConfigError, match="--expert-file names it"):
        changed(find("replace-expert"))
    (event,) = changed(find("replace-expert"), expert_file="a").events
    assert isinstance(event, events.Replace)
    assert event.path == "a"
