"""The parser of all commands: what is wrong is one line, which names what may have been meant."""

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from expertmesh.shown_text import MAX_QUOTED, one_line, quoted

_MAX_SUGGESTIONS = 3
_LEAST_LIKENESS = 0.6
# An unknown option is often the cause of these errors; the error then names it instead.
_EXPLAINED = ("the following arguments are required", "one of the arguments", "unexpected argument")


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and that accepts no abbreviation.

    An abbreviation could mean another option as soon as the next version has more of them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._given: Sequence[str] = ()

    def parse_known_args(  # type: ignore[override] # its overloads say this at length
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuses what is left over, also as the parser of an action: it is the one that knows its names."""
        self._given = tuple(args or ())
        known, extra = super().parse_known_args(args, namespace)
        if extra:
            self.error(f"unexpected argument {quoted(extra[0])}")
        # For a command to which it matters whether a default was asked for.
        known.given_options = frozenset(self._options())
        return known, []

    def error(self, message: str) -> NoReturn:
        if message.startswith(_EXPLAINED):
            unknown = (name for name in self._options() if name not in self._option_string_actions)
            message = next(map(self._unknown, unknown), message)
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), names) or f" is not one of {', '.join(names)}"
            raise argparse.ArgumentError(action, f"{quoted(str(value))}{hint}")

    def _options(self) -> Iterable[str]:
        """What was given that looks like the name of an option."""
        ours = self._given[: self._given.index("--")] if "--" in self._given else self._given
        names = (text.partition("=")[0] for text in ours if text.startswith("-"))
        return (name for name in names if name[1:2].isalpha() or (name[:2] == "--" and " " not in name))

    def _unknown(self, name: str) -> str:
        return f"unknown option {quoted(name)}{did_you_mean(name, self._option_string_actions)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'serve'?`: those that begin so, else the one that looks so; empty where none does."""
    names = list(known)
    found = [one for one in names if name and one.startswith(name)][:_MAX_SUGGESTIONS]
    found = found or get_close_matches(name[:MAX_QUOTED], names, 1, _LEAST_LIKENESS)
    return f", did you mean {' or '.join(map(repr, found))}?" if found else ""
