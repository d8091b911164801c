"""What is shown of a text that anyone may have written."""

from collections.abc import Callable

import pytest

from expertmesh.shown_text import escaped, one_line, printable, quoted, quoted_ascii, visible_ascii

ODD = "\x1b[31m\u202eé"


def test_what_cannot_be_shown_is_a_question_mark_or_its_escape() -> None:
    assert printable(ODD) == "?[31m?é"
    assert escaped(ODD) == "\\x1b[31m\\u202eé"
    assert visible_ascii(ODD) == "?[31m??"
    assert one_line(f"a\n  {ODD}\tb ") == "a ?[31m?é b"


@pytest.mark.parametrize("shown", [printable, escaped, one_line, visible_ascii])
def test_plain_text_stays(shown: Callable[[str], str]) -> None:
    assert shown("a plain text, 1 + 1 = 2") == "a plain text, 1 + 1 = 2"


def test_a_callers_text_comes_back_short_and_harmless() -> None:
    assert quoted_ascii("é\n\x1b[31m") == "'\\xe9\\n\\x1b[31m'"
    assert quoted("é\n") == "'é\\n'"
    for shown in (quoted, quoted_ascii):
        assert len(shown("a" * 10_000)) < 100
