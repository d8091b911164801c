"""Writes docs/options.md, every option of every command, from where they are declared; or checks it.

`python scripts/option_page.py [--check]`, in the environment that has the commands.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.arguments import PARSERS  # noqa: E402
from expertmesh.command_line import full_parser  # noqa: E402

PAGE = ROOT / "docs" / "options.md"
HEAD = """\
# Options

What `--help` says, on one page. `scripts/option_page.py` writes it from where the options are declared
(`make pages`); a change here by hand does not last. Defaults are in parentheses. What operators need to
know of the more important ones is in [operating.md](operating.md).
"""
# What argparse adds to a switch that has a default, besides what its help says.
ADDED = " (default: %(default)s)"
Table = tuple[str, ...]


def page() -> str:
    """The whole page. Of a group that an earlier command has as well, only what is different is shown."""
    first: dict[str, tuple[str, Table]] = {}
    parts = [HEAD]
    for name, parser in commands():
        parts.append(f"## `{name}`\n")
        for title, table in tables(parser):
            known, rows = first.setdefault(title, (name, table)) if title else (name, table)
            new = [each for each in table if known == name or each not in rows]
            heading = f"**{title}**" if title else ""
            if known != name:
                heading += f" as for `{known}`" + (", but" if new else "")
            shown = "\n".join(("| option | |", "|---|---|", *new)) if new else ""
            parts += [f"{part}\n" for part in (heading, shown) if part]
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command and action that has options of its own, and what it is called with."""
    yield from _below("expertmesh", full_parser())
    for name, make in PARSERS.items():
        yield f"expertmesh bench {name}", make()


def _below(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    actions = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not actions:
        yield name, parser
    for action in actions:
        for word, below in action.choices.items():
            yield from _below(f"{name} {word}", below)


def tables(parser: argparse.ArgumentParser) -> Iterator[tuple[str, Table]]:
    """The title of each group, and its rows; the command's own have none."""
    own: list[str] = []
    others: list[tuple[str, Table]] = []
    for group in parser._action_groups:
        rows = [row(parser, action) for action in group._group_actions if action.dest != "help"]
        if group.title in ("positional arguments", "options"):
            own += rows
        elif rows:
            others.append((str(group.title), tuple(rows)))
    if own:
        yield "", tuple(own)
    yield from others


def row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or _value(action)
    value = _value(action) if action.option_strings and action.nargs != 0 else ""
    value = f"[{value}]" if action.option_strings and action.nargs == "?" else value
    text = (action.help or "").removesuffix(ADDED) % {**vars(action), "prog": parser.prog}
    return f"| `{_escaped(f'{names} {value}'.strip())}` | {_escaped(text)} |"


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.dest.upper()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the page is stale")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.stderr.write("docs/options.md is stale: run make pages\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
