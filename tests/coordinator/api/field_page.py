"""docs/fields.md: a row for each field of the table in coordinator/api/http/fields.py.

`python -m tests.coordinator.api.field_page` writes the rows anew.
"""

import json
import re
from pathlib import Path

from coordinator.api.http.fields import BUILT, EMPTY, HARMLESS, REFUSED, Refused, Route, refusal, verdict

PAGE = Path(__file__).parents[3] / "docs" / "fields.md"
HEAD = "| field | completions | chat | |\n|---|---|---|---|\n"


def rows() -> list[str]:
    """In the order of the alphabet."""
    generating = (Route.COMPLETIONS, Route.CHAT)
    names = {*HARMLESS, *REFUSED, *(name for route in generating for name in BUILT[route])}
    return [_row(name) for name in sorted(names)]


def page_with(table: list[str]) -> str:
    """The page's own text around the rows."""
    text = PAGE.read_text(encoding="utf-8")
    before = text[: text.index(HEAD)]
    return before + HEAD + "".join(f"{row}\n" for row in table)


def rows_of_page() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"^\|.*\|$", text[text.index(HEAD) + len(HEAD) :], re.MULTILINE)


def _row(name: str) -> str:
    on = {route: verdict(name, route) for route in (Route.COMPLETIONS, Route.CHAT)}
    refused = next(
        (found for route in on if (found := refusal(name, route)) and name not in BUILT[route]), None
    )
    return f"| `{name}` | {on[Route.COMPLETIONS]} | {on[Route.CHAT]} | {_note(refused, name)} |"


def _note(refused: Refused | None, name: str) -> str:
    if refused is None or name in HARMLESS:
        return ""
    neutral = ", ".join(f"`{json.dumps(value)}`" for value in refused.neutral)
    taken = f"; taken: {neutral}" if neutral and refused.neutral != EMPTY else ""
    return f"{refused.instead}{taken}".removeprefix("; ")


if __name__ == "__main__":
    PAGE.write_text(page_with(rows()), encoding="utf-8")
