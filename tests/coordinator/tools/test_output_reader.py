"""Outputs of each family's form, cut at every character, are said, thought and called as they were meant."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.tools.forms import FORMS, CallForm, NamedBody, ObjectBody, TagBody
from coordinator.tools.output_reader import OutputForm, OutputReader
from coordinator.tools.pieces import Arguments, CallBegun, Piece, Said, Thought
from coordinator.tools.thoughts import MARKS

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "more": {"type": "object"}},
    },
    "now": {"type": "object", "properties": {}},
}
Call = tuple[str, dict[str, Any]]
CALLS: list[list[Call]] = [
    [("get_weather", {"city": 'Köln "am" Rhein {[</tool', "days": 3})],
    [("now", {})],
    [("now", {}), ("get_weather", {"more": {"a": [1, {"b": "}"}]}}), ("now", {})],
]


def write(form: CallForm, calls: Sequence[Call]) -> str:
    """As the family's template writes it."""
    written = [form.before + _body(form, name, arguments) + form.after for name, arguments in calls]
    return form.opening + form.separator.join(written) + form.closing


def _body(form: CallForm, name: str, arguments: dict[str, Any]) -> str:
    match form.body:
        case ObjectBody(before, between, after):
            return before + json.dumps(name) + between + json.dumps(arguments, ensure_ascii=False) + after
        case NamedBody(before, between, after):
            return before + name + between + json.dumps(arguments, ensure_ascii=False) + after
        case TagBody() as body:
            found = body.before + name + body.between
            for key, value in arguments.items():
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                found += body.key_before + key + body.key_after + text + body.value_after
            return found + body.after


def read(form: OutputForm, texts: Iterable[str]) -> list[Piece]:
    reader = OutputReader(form)
    found: list[Piece] = []
    for text in texts:
        found += reader.push(text)
    return found + reader.finish()


def said(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Said))


def thought(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Thought))


def called(pieces: Iterable[Piece]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for piece in pieces:
        if isinstance(piece, CallBegun):
            found.append((piece.name, ""))
        elif isinstance(piece, Arguments):
            name, text = found[-1]
            found[-1] = (name, text + piece.text)
    return found


def parsed(pieces: Iterable[Piece]) -> list[Call]:
    return [(name, json.loads(text)) for name, text in called(pieces)]


@pytest.mark.parametrize("calls", CALLS, ids=["one", "empty", "three"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_calls_are_read_back_however_they_are_cut(form: CallForm, calls: list[Call]) -> None:
    text = write(form, calls)
    before = "" if form.name == "json" else "I look it up.\n\n"
    output = OutputForm(form, TOOLS)
    whole = read(output, [before + text])
    assert parsed(whole) == calls
    assert said(whole) == before.rstrip()
    for place in range(len(before + text)):
        pieces = read(output, [(before + text)[:place], (before + text)[place:]])
        assert (parsed(pieces), said(pieces)) == (calls, before.rstrip()), place
    assert parsed(read(output, before + text)) == calls


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_output_that_breaks_off_tells_what_there_was(form: CallForm) -> None:
    """Names and beginnings of arguments; nothing of a call that was not told is lost."""
    text = write(form, CALLS[0])
    [(name, whole)] = called(read(OutputForm(form, TOOLS), [text]))
    for place in range(1, len(text)):
        pieces = read(OutputForm(form, TOOLS), text[:place])
        if called(pieces):
            [(begun, arguments)] = called(pieces)
            assert begun == name
            assert whole.startswith(arguments)
            assert said(pieces) == ""
        else:
            assert said(pieces) == text[:place]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "wrong",
    ["nothing of the kind", '{"name": "unknown", "arguments": {}}', '{"arguments": 1}', "unknown{}", "["],
)
def test_what_is_no_call_is_said(form: CallForm, wrong: str) -> None:
    text = f"{form.opening}{form.before}{wrong}{form.after}{form.closing} and so on"
    pieces = read(OutputForm(form, TOOLS), text)
    assert called(pieces) == []
    assert said(pieces) == text


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_without_tools_calls_are_text(form: CallForm) -> None:
    text = write(form, CALLS[0])
    assert read(OutputForm(form), [text]) == [Said(text)]


def test_an_object_in_another_order_is_a_call() -> None:
    text = (
        '<tool_call>\n{"arguments": "{\\"city\\": \\"Ulm\\"}", "id": 1, "name": "get_weather"}\n</tool_call>'
    )
    assert parsed(read(OutputForm(FORMS["hermes"], TOOLS), text)) == [("get_weather", {"city": "Ulm"})]


def test_keys_beside_those_of_a_call_are_passed_over() -> None:
    text = '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "abcdefghi"}]'
    assert parsed(read(OutputForm(FORMS["mistral"], TOOLS), text)) == [("now", {})]


def test_arguments_come_as_they_are_written() -> None:
    reader = OutputReader(OutputForm(FORMS["hermes"], TOOLS))
    assert reader.push('<tool_call>\n{"name": "get_weather", "argu') == []
    assert reader.push('ments": {"ci') == [CallBegun("get_weather"), Arguments('{"ci')]
    assert reader.push('ty": "Ulm') == [Arguments('ty": "Ulm')]
    assert reader.push('"}}\n</tool_call>') == [Arguments('"}')]
    assert reader.finish() == []


def test_text_after_calls_is_said() -> None:
    text = write(FORMS["hermes"], CALLS[1]) + "\nDone. " + write(FORMS["hermes"], CALLS[1])
    pieces = read(OutputForm(FORMS["hermes"], TOOLS), text)
    assert (called(pieces), said(pieces)) == ([("now", "{}"), ("now", "{}")], "Done.")


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.begin)
@pytest.mark.parametrize("is_thinking", [False, True])
def test_a_thought_stands_apart(marks: Any, is_thinking: bool) -> None:
    text = f"\nLet me see.\n\nYes.\n{marks.end}\n\nIt is so.\n"
    text = text if is_thinking else marks.begin + text
    form = OutputForm(thoughts=marks, is_thinking=is_thinking)
    for texts in ([text], list(text), [text[:9], text[9:31], text[31:]]):
        pieces = read(form, texts)
        assert (thought(pieces), said(pieces)) == ("Let me see.\n\nYes.", "It is so.\n")


def test_a_call_within_a_thought_is_thought() -> None:
    call = write(FORMS["hermes"], CALLS[1])
    text = f"<think>{call}</think>{call}"
    pieces = read(OutputForm(FORMS["hermes"], TOOLS, MARKS[0]), text)
    assert (thought(pieces), called(pieces), said(pieces)) == (call, [("now", "{}")], "")


def test_an_unfinished_thought_is_thought() -> None:
    assert thought(read(OutputForm(thoughts=MARKS[0], is_thinking=True), ["Hm</thi"])) == "Hm</thi"
    assert read(OutputForm(thoughts=MARKS[0]), ["<thin"]) == [Said("<thin")]


MARKS_OF_CALLS = [
    mark for form in FORMS.values() for mark in (form.opening, form.before, form.after, form.closing) if mark
]
OTHERS = [
    "<think>",
    "</think>",
    "\n",
    " ",
    "a",
    "now",
    "get_weather",
    '{"name": "now", "arguments": {',
    "{}",
    "}",
    "]",
    '"',
    ",",
    "[ARGS]",
]
MORE = ["<｜tool▁sep｜>", "\n```json\n", "\n```", "<function=now>", "</function>", "<arg_key>"]
PARTS = st.sampled_from([*MARKS_OF_CALLS, *OTHERS, *MORE])


@settings(max_examples=300)
@given(st.sampled_from(sorted(FORMS)), st.lists(PARTS, max_size=14).map("".join), st.data())
def test_how_it_is_cut_changes_nothing(name: str, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    form = OutputForm(FORMS[name], TOOLS, MARKS[0], data.draw(st.booleans()))
    whole = read(form, [text])
    for texts in (list(text), [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]):
        pieces = read(form, texts)
        assert (said(pieces), thought(pieces), called(pieces)) == (said(whole), thought(whole), called(whole))


@given(st.sampled_from(sorted(FORMS)), st.lists(PARTS, max_size=14).map("".join))
def test_what_is_told_was_there(name: str, text: str) -> None:
    """All that is said is in the output, in its order."""
    place = 0
    for character in said(read(OutputForm(FORMS[name], TOOLS), [text])):
        place = text.find(character, place) + 1
        assert place
