"""Options: each is declared once, at the field of the frozen dataclass that the program reads.

    @dataclass(frozen=True)
    class EngineConfig:
        max_num_seqs: Annotated[
            int, Option("--max-batch", parse=positive, metavar="N", help="sequences at once (%(default)s)")
        ] = 64

`add_options` makes arguments of argparse from the declarations, `options_of` makes the dataclass from what
was parsed, and `declared` lists them for the pages. Type and default of the field are those of the option: a
Literal or an Enum gives the choices, a bool makes a switch, a tuple an option that may be repeated, and a
field without a default an option that is needed. Checks of several options together belong to the dataclass,
in `__post_init__`. Only what argparse loads as well is imported here, so that `--help` stays quick.
"""

import argparse
import types
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, MISSING, Field, dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from expertmesh.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """How the command line names a field; its annotation's metadata.

    flag: `--name`; or a word such as `CHECKPOINT`, for an argument that is known by its place, which may be
        left out where the field has a default.
    help: argparse's, with its placeholders: `%(default)s` is the field's default.
    choices: of a field whose type does not say them.
    parse: one text to a value; raises ArgumentTypeError, to which argparse adds the flag.
    convert: what was parsed, if the flag was given, to the field's value; raises an error of ours.
    negatable: a bool that has `--no-name` as well.
    bare: the field's value where the flag is given alone; None where a value must follow it.
    one_of: options of one group with the same `one_of` exclude each other; with `required` one is needed.
    is_shared: another class of the same command may have the same flag; the help of the first is shown.
    """

    flag: str
    _: KW_ONLY
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    convert: Callable[[Any], Any] | None = None
    negatable: bool = False
    bare: Any = None
    one_of: str | None = None
    required: bool = False
    is_shared: bool = False

    @property
    def is_positional(self) -> bool:
        return not self.flag.startswith("-")


@dataclass(frozen=True, slots=True)
class Group:
    """Of a field that is a dataclass with options of its own: the heading above them in the help. Groups with
    the same title are one; without a title the options are among the command's own. `only`: the fields that a
    command offers; the others keep the values of the default."""

    title: str | None = None
    about: str | None = None
    only: tuple[str, ...] = ()


COMMAND = Group()


class Declared(NamedTuple):
    """One option: the field's name and type (without `None`), its default or MISSING, and its group."""

    name: str
    option: Option
    type: Any
    default: Any
    group: Group

    @property
    def dest(self) -> str:
        """Its name in argparse's namespace: of the flag, which is unique in a command, as fields are not."""
        return self.name if self.option.is_positional else self.option.flag.lstrip("-").replace("-", "_")

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that there are; empty for any."""
        if self.option.choices:
            return self.option.choices
        if get_origin(self.type) is Literal:
            return get_args(self.type)
        return tuple(str(one.value) for one in self.type) if _is_enum(self.type) else ()

    @property
    def is_repeated(self) -> bool:
        return get_origin(self.type) is tuple


def declared(
    cls: type, group: Group = COMMAND, defaults: object = None, only: tuple[str, ...] = ()
) -> Iterator[Declared]:
    """All options of a dataclass and of the dataclasses in it, in the order of their fields."""
    for each in _marked(cls, defaults, only):
        if isinstance(each.mark, Option):
            yield Declared(each.name, each.mark, each.type, each.default, group)
        else:
            inner = group if each.mark.title is None else each.mark
            for option in declared(each.type, inner, each.inner_defaults, each.mark.only):
                # Where all may be missing, none is needed by itself.
                yield option._replace(default=None) if each.may_be_none else option


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """An argument of the parser for each option of the dataclass."""
    groups: dict[str | None, Any] = {None: parser}
    exclusive: dict[tuple[str | None, str], Any] = {}
    known: set[str] = set()
    for each in declared(cls):
        option, title = each.option, each.group.title
        if option.is_shared and option.flag in known:
            continue
        known.add(option.flag)
        if title not in groups:
            groups[title] = parser.add_argument_group(title, each.group.about)
        container = groups[title]
        if option.one_of is not None:
            key = (title, option.one_of)
            if key not in exclusive:
                exclusive[key] = container.add_mutually_exclusive_group(required=option.required)
            container = exclusive[key]
        _add(container, each)


def options_of(args: argparse.Namespace, cls: type[T]) -> T:
    """The dataclass, with what add_options(parser, cls) has parsed. Raises ConfigError for an option that
    needs others, and what the dataclass's own checks raise."""
    return _filled(args, cls, None, ())


def _filled(args: argparse.Namespace, cls: type[T], defaults: Any, only: tuple[str, ...]) -> T:
    values: dict[str, Any] = {}
    for each in _marked(cls, defaults, only):
        if isinstance(each.mark, Option):
            option = Declared(each.name, each.mark, each.type, each.default, COMMAND)
            values[each.name] = _value(args, option)
        elif each.may_be_none:
            values[each.name] = _filled_or_none(args, each.type)
        else:
            values[each.name] = _filled(args, each.type, each.inner_defaults, each.mark.only)
    return cls(**values) if defaults is None else replace(defaults, **values)


def _filled_or_none(args: argparse.Namespace, cls: type[T]) -> T | None:
    """None where none of its options was given; those without a default are needed with any of them."""
    options = list(declared(cls))
    given = {each.option.flag for each in options if getattr(args, each.dest) is not None}
    needed = [each.option.flag for each in options if each.default is MISSING]
    if not given:
        return None
    if not given.issuperset(needed):
        names = " and ".join(filter(None, (", ".join(needed[:-1]), needed[-1])))
        together = f"{names} are needed together"
        raise ConfigError(together if given & set(needed) else f"{min(given)} needs {names}")
    return _filled(args, cls, None, ())


def _value(args: argparse.Namespace, each: Declared) -> Any:
    value = getattr(args, each.dest)
    if each.is_repeated and value is not None:
        value = tuple(value)
    if value is None or value is each.default or value == ():
        return value
    if each.option.convert is not None:
        return each.option.convert(value)
    return each.type(value) if _is_enum(each.type) else value


def _add(container: Any, each: Declared) -> None:
    option, settings = each.option, _reading(each)
    settings["help"] = option.help
    if option.metavar is not None:
        settings["metavar"] = option.metavar
    if option.is_positional:
        if each.default is not MISSING:
            settings |= {"nargs": "?", "default": each.default}
        container.add_argument(each.name, **settings | {"metavar": option.flag})
        return
    if each.default is MISSING:
        settings["required"] = True
    elif each.is_repeated:
        settings["default"] = None if each.default is None else list(each.default)
    else:
        settings["default"] = each.default
    container.add_argument(option.flag, **settings)


def _reading(each: Declared) -> dict[str, Any]:
    """How argparse turns texts into a value, and which texts there are."""
    option, settings = each.option, dict[str, Any]()
    if each.type is bool:
        return {"action": argparse.BooleanOptionalAction if option.negatable else "store_true"}
    if each.is_repeated:
        settings["action"] = "append"
    if each.choices:
        settings["choices"] = each.choices
    if option.bare is not None:
        settings |= {"nargs": "?", "const": option.bare}
    if option.parse is not None:
        settings["type"] = option.parse
    elif not each.choices and each.type in (int, float, Path):
        settings["type"] = each.type
    return settings


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


class _Marked(NamedTuple):
    """A field whose annotation says what it is on a command line."""

    name: str
    mark: Option | Group
    type: Any
    may_be_none: bool
    default: Any

    @property
    def inner_defaults(self) -> object:
        """Of a dataclass, what its fields' own defaults give way to; None where they do not."""
        return None if self.default is MISSING else self.default


def _marked(cls: type, defaults: object, only: tuple[str, ...]) -> Iterator[_Marked]:
    """`defaults`: an instance whose values take the place of the fields' defaults, or None; `only`: the names
    of the fields that are wanted, none for all."""
    hints = get_type_hints(cls, include_extras=True)
    wanted = [field for field in fields(cls) if not only or field.name in only]
    assert not only or len(wanted) == len(only), f"{cls.__name__} has not all of {only}"
    for field in wanted:
        hint = hints[field.name]
        for mark in getattr(hint, "__metadata__", ()):
            if isinstance(mark, Option | Group):
                kind = _without_none(hint.__origin__)
                may_be_none = kind is not hint.__origin__
                yield _Marked(field.name, mark, kind, may_be_none, _default(field, defaults))


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else hint


def _default(field: Field[Any], defaults: object) -> Any:
    if defaults is not None:
        return getattr(defaults, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()
