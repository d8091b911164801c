"""Pieces of HTML: every text that comes from a file goes through `escape` here."""

from collections.abc import Sequence
from html import escape
from math import isfinite
from typing import NamedTuple

__all__ = ["Field", "escape", "figure", "number", "table"]


class Field(NamedTuple):
    """What a table shows, and by which number it is sorted; None: by its text."""

    text: str
    value: float | None = None
    hint: str = ""


def number(value: float | None, unit: str = "") -> Field:
    """Four digits, as much as is known of a measurement."""
    if value is None or not isfinite(value):
        return Field("")
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return Field(f"{text} {unit}".strip(), value)


def table(head: Sequence[str], rows: Sequence[Sequence[Field]]) -> str:
    """One that a reader can sort, where scripts run."""
    parts = ["<div class=scroll><table><thead><tr>", *(f"<th>{escape(text)}</th>" for text in head)]
    parts.append("</tr></thead><tbody>")
    for row in rows:
        parts += ["<tr>", *map(_field, row), "</tr>"]
    return "".join([*parts, "</tbody></table></div>"])


def figure(svg: str, title: str = "") -> str:
    """`svg`: drawn by us; its texts are escaped in it."""
    caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    return f"<figure>{caption}{svg}</figure>"


def _field(field: Field) -> str:
    hint = f' title="{escape(field.hint)}"' if field.hint else ""
    if field.value is None:
        return f"<td{hint}>{escape(field.text)}</td>"
    return f'<td class=n data-value="{field.value!r}"{hint}>{escape(field.text)}</td>'
