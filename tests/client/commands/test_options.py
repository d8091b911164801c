"""What a declared option becomes: an argument of argparse, and a field of the dataclass asked for."""

from dataclasses import MISSING, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest

from expertmesh.commands.options import Group, Option, add_options, declared, options_of
from expertmesh.commands.parser import OneLineParser
from expertmesh.commands.values import positive
from moe_model.errors import ConfigError


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Files:
    cert: Annotated[Path, Option("--cert", help="a file")]
    key: Annotated[Path, Option("--key", help="a file")]
    ca: Annotated[Path | None, Option("--ca", help="a file")] = None


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, Option("--size", parse=positive, metavar="N", help="how many (%(default)s)")] = 3
    kind: Annotated[Literal["a", "b"], Option("--kind", help="which")] = "a"
    colour: Annotated[Colour, Option("--colour", help="which (%(default)s)")] = Colour.RED
    files: Annotated[Files | None, Group()] = None
    cautious: Annotated[bool, Option("--cautious", help="inner words", is_shared=True)] = False
    untold: float = 0.5


@dataclass(frozen=True)
class Outer:
    source: Annotated[Path, Option("SOURCE", help="where from")]
    text: Annotated[str, Option("--text", help="needed")]
    names: Annotated[tuple[str, ...], Option("--name", help="may be repeated")] = ()
    on: Annotated[bool, Option("--on", negatable=True, help="a switch")] = True
    cautious: Annotated[bool, Option("--cautious", help="outer words", is_shared=True)] = False
    parts: Annotated[
        int | None, Option("--parts", choices=("auto", "1", "2"), convert=lambda text: int(text), help="x")
    ] = None
    inner: Annotated[Inner, Group("inner things", "About them.")] = Inner(size=7, untold=0.25)


@dataclass(frozen=True)
class OneOfTwo:
    first: Annotated[str | None, Option("--first", one_of="it", required=True, help="x")] = None
    second: Annotated[str | None, Option("--second", one_of="it", required=True, help="x")] = None


NEEDED = ("here", "--text", "x")


def parser_of(cls: type) -> OneLineParser:
    parser = OneLineParser(prog="command")
    add_options(parser, cls)
    return parser


def parse(*arguments: str) -> Outer:
    return options_of(parser_of(Outer).parse_args(arguments), Outer)


def refused(cls: type, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        parser_of(cls).parse_args(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


def test_nothing_given_is_the_dataclass_s_own_defaults() -> None:
    assert parse(*NEEDED) == Outer(Path("here"), "x")
    assert parse(*NEEDED).inner == Inner(size=7, untold=0.25)


def test_everything_given() -> None:
    options = (
        "--name a --name b --no-on --cautious --parts 2 --size 9 --kind b --colour blue --cert c --key k"
    )
    found = parse(*NEEDED, *options.split())
    files = Files(Path("c"), Path("k"))
    inner = Inner(9, "b", Colour.BLUE, files, cautious=True, untold=0.25)
    assert found == Outer(Path("here"), "x", ("a", "b"), on=False, cautious=True, parts=2, inner=inner)
    assert isinstance(found.inner.colour, Colour)


def test_a_repeated_option_starts_anew_in_each_run() -> None:
    parser = parser_of(Outer)
    for _ in range(2):
        assert options_of(parser.parse_args([*NEEDED, "--name", "a"]), Outer).names == ("a",)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["here"], "--text"),
        (["--text", "x"], "SOURCE"),
        ([*NEEDED, "--size", "0"], "--size: '0' is not a whole number in [1, "),
        ([*NEEDED, "--kind", "c"], "--kind: 'c' is not one of a, b"),
        ([*NEEDED, "--colour", "bleu"], "--colour: 'bleu', did you mean 'blue'?"),
        ([*NEEDED, "--parts", "3"], "--parts: '3' is not one of auto, 1, 2"),
        ([*NEEDED, "--siz", "3"], "unknown option '--siz', did you mean '--size'?"),
    ],
)
def test_what_is_wrong_is_said_of_its_option(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(Outer, *arguments) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cert", "c"], "--cert and --key are needed together"),
        (["--key", "k", "--ca", "a"], "--cert and --key are needed together"),
        (["--ca", "a"], "--ca needs --cert and --key"),
    ],
)
def test_options_that_belong_together_are_all_given_or_none(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        parse(*NEEDED, *arguments)


def test_options_that_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert options_of(parser_of(OneOfTwo).parse_args(["--second", "b"]), OneOfTwo) == OneOfTwo(second="b")
    assert refused(OneOfTwo) == 2
    assert refused(OneOfTwo, "--first", "a", "--second", "b") == 2
    assert "one of the arguments --first --second is required" in capsys.readouterr().err


def test_the_help_has_groups_defaults_and_the_first_words_of_a_shared_option() -> None:
    text = parser_of(Outer).format_help()
    assert "inner things:\n  About them.\n" in text
    assert "how many (7)" in text
    assert "which (red)" in text
    assert "outer words" in text
    assert "inner words" not in text


def test_a_flag_that_two_classes_have_must_be_marked_as_shared() -> None:
    @dataclass(frozen=True)
    class Other:
        size: Annotated[int, Option("--size", help="x")] = 1
        inner: Annotated[Inner, Group()] = field(default_factory=Inner)

    with pytest.raises(Exception, match="conflicting option string: --size"):
        parser_of(Other)


def test_the_list_of_options_says_what_they_are() -> None:
    found = {each.option.flag: each for each in declared(Outer)}
    assert found["--size"].default == 7
    assert found["--size"].group.title == "inner things"
    assert found["--text"].default is MISSING
    assert found["--cert"].default is None
    assert (found["SOURCE"].dest, found["--name"].dest) == ("source", "name")


@dataclass(frozen=True)
class Some:
    inner: Annotated[Inner, Group(only=("size", "kind"))] = Inner(size=5, cautious=True)


def test_a_command_may_offer_some_of_the_options() -> None:
    assert [each.option.flag for each in declared(Some)] == ["--size", "--kind"]
    found = options_of(parser_of(Some).parse_args(["--kind", "b"]), Some)
    assert found.inner == Inner(size=5, kind="b", cautious=True)


def test_a_name_that_is_no_field_is_not_offered() -> None:
    @dataclass(frozen=True)
    class Wrong:
        inner: Annotated[Inner, Group(only=("size", "knid"))] = field(default_factory=Inner)

    with pytest.raises(AssertionError, match="knid"):
        list(declared(Wrong))


@dataclass(frozen=True)
class Loose:
    where: Annotated[str | None, Option("WHERE", help="may be left out")] = None
    folder: Annotated[Path | None, Option("--folder", bare=Path("usual"), help="may stand alone")] = None


def test_an_argument_by_its_place_may_be_left_out_where_it_has_a_default() -> None:
    parser = parser_of(Loose)
    assert options_of(parser.parse_args([]), Loose) == Loose()
    assert options_of(parser.parse_args(["there"]), Loose) == Loose("there")


def test_a_flag_that_stands_alone_has_a_value_of_its_own() -> None:
    parser = parser_of(Loose)
    assert options_of(parser.parse_args(["--folder"]), Loose) == Loose(None, Path("usual"))
    assert options_of(parser.parse_args(["--folder", "other"]), Loose) == Loose(None, Path("other"))
    assert options_of(parser.parse_args(["there", "--folder"]), Loose) == Loose("there", Path("usual"))
