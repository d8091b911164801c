"""OutputReader: a model's output, piece by piece, as what it says, what it thinks and which tools it calls.

Nothing is lost: a text that begins like a call and is none is said. However the output is cut into pieces,
the same is said, thought and called.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from coordinator.tools.forms import Body, CallForm, NamedBody
from coordinator.tools.pieces import CallBegun, Piece, Said, Thought
from coordinator.tools.readers import Reader, Tools, reader_of
from coordinator.tools.thoughts import ThoughtMarks


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How an output is to be read. Without tools calls are text. `is_thinking`: a thought was begun."""

    calls: CallForm | None = None
    tools: Tools = field(default_factory=dict)
    thoughts: ThoughtMarks | None = None
    is_thinking: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that are looked for: where they are special tokens, they have to be shown."""
        found: list[str] = []
        if self.thoughts is not None:
            found += (self.thoughts.begin, self.thoughts.end)
        if self.calls is not None and self.tools:
            found += (self.calls.opening, self.calls.before, self.calls.after, self.calls.closing)
            found += _texts(self.calls.body)
        return tuple(mark.strip() for mark in found if mark.strip())


_SPACE = " \n\r\t"


class _Where(Enum):
    BEGIN = auto()
    THOUGHT = auto()
    SAID = auto()
    OPENING = auto()
    BEFORE = auto()
    CALL = auto()
    AFTER = auto()
    BETWEEN = auto()


class OutputReader:
    """Of one sequence. After `finish` it takes no more."""

    def __init__(self, form: OutputForm) -> None:
        self._thoughts = form.thoughts
        self._calls = form.calls if form.tools else None
        self._tools = form.tools
        self._where = _Where.THOUGHT if form.is_thinking and form.thoughts else _Where.BEGIN
        # What is not told yet, and of it what belongs to a call that may still turn out to be none.
        self._held = ""
        self._doubtful = ""
        self._skips_lines = True
        self._reader: Reader | None = None
        self._steps = {
            _Where.BEGIN: self._begin,
            _Where.THOUGHT: self._thought,
            _Where.SAID: self._said,
            _Where.OPENING: self._opening,
            _Where.BEFORE: self._before,
            _Where.CALL: self._call,
            _Where.AFTER: self._after,
            _Where.BETWEEN: self._between,
        }

    @property
    def is_thinking(self) -> bool:
        """Whether what was read ends within a thought."""
        return self._where is _Where.THOUGHT

    def push(self, text: str) -> list[Piece]:
        """What the text makes certain."""
        self._held += text
        return self._read(is_end=False)

    def finish(self, text: str = "") -> list[Piece]:
        """The last of it: what was held back is what it looks like."""
        self._held += text
        found = self._read(is_end=True)
        if self._where in (_Where.OPENING, _Where.BEFORE) or (self._reader and not self._reader.begun):
            found.append(Said(self._doubtful + self._held))
        return _merged(found)

    def _read(self, *, is_end: bool) -> list[Piece]:
        found: list[Piece] = []
        while self._steps[self._where](found, is_end):
            pass
        return _merged(found)

    def _begin(self, found: list[Piece], is_end: bool) -> bool:
        """Before anything was said: a thought may begin or, in a form without a mark, a call."""
        text = self._held.lstrip()
        marks, calls = self._thoughts, self._calls
        if marks is not None:
            if text.startswith(marks.begin):
                self._held = text[len(marks.begin) :]
                return self._to(_Where.THOUGHT)
            if marks.begin.startswith(text) and not is_end:
                return False
        if calls is not None and not calls.mark:
            if not text and not is_end:
                return False
            if text[:1] in ("{", "["):
                return self._to(_Where.OPENING)
            self._calls = None
        self._skips_lines = False
        return self._to(_Where.SAID)

    def _thought(self, found: list[Piece], is_end: bool) -> bool:
        marks = self._thoughts
        assert marks is not None
        if not self._begins_with_text(is_end):
            return False
        thought, mark, rest = self._held.partition(marks.end)
        if mark:
            found.append(Thought(thought.rstrip("\n")))
            self._held, self._skips_lines = rest, True
            return self._to(_Where.SAID)
        self._give(found, Thought, 0 if is_end else _num_open(self._held, marks.end, "\n"))
        return False

    def _said(self, found: list[Piece], is_end: bool) -> bool:
        """Text, up to the mark of a call."""
        if not self._begins_with_text(is_end):
            return False
        if self._calls is None or not self._calls.mark:
            self._give(found, Said, 0)
            return False
        mark = self._calls.mark
        place = self._held.find(mark)
        if place >= 0:
            said = self._held[:place].rstrip()
            found.append(Said(said))
            self._held = self._held[len(said) :]
            return self._to(_Where.OPENING)
        self._give(found, Said, 0 if is_end else _num_open(self._held, mark, _SPACE))
        return False

    def _opening(self, found: list[Piece], is_end: bool) -> bool:
        """What stands before all calls, which is here."""
        assert self._calls is not None
        calls = self._calls
        if not calls.opening:
            return self._to(_Where.BEFORE)
        text = self._held.lstrip()[len(calls.mark) :].lstrip()
        if not text:
            return False
        if calls.is_list and text.startswith("["):
            text = text[1:]
        return self._take(text, _Where.BEFORE)

    def _before(self, found: list[Piece], is_end: bool) -> bool:
        """What stands before each call."""
        assert self._calls is not None
        taken = self._mark(self._calls.before)
        if taken is None:
            return False
        if not taken:
            return self._no_call(found)
        self._reader = reader_of(self._calls.body, self._calls.after or self._calls.closing, self._tools)
        return self._to(_Where.CALL)

    def _call(self, found: list[Piece], is_end: bool) -> bool:
        reader = self._reader
        assert reader is not None
        self._doubtful += self._held
        text, self._held = self._held, ""
        found += reader.push(text)
        if reader.failed:
            return self._no_call(found)
        if not reader.done:
            return False
        self._held, self._doubtful, self._reader = reader.rest, "", None
        return self._to(_Where.AFTER)

    def _after(self, found: list[Piece], is_end: bool) -> bool:
        """What stands behind each call; it may be missing."""
        assert self._calls is not None
        if self._mark(self._calls.after) is None:
            # At the end of the output it is a mark that was broken off.
            self._held = "" if is_end else self._held
            return False
        return self._to(_Where.BETWEEN)

    def _between(self, found: list[Piece], is_end: bool) -> bool:
        """Another call, the end of all, or text."""
        assert self._calls is not None
        calls, text = self._calls, self._held.lstrip()
        self._doubtful = ""
        if not text:
            self._held = ""
            return False
        if calls.is_list and text.startswith(","):
            return self._take(text[1:], _Where.BEFORE)
        if calls.before and not calls.is_list and text.startswith(calls.before.strip()):
            return self._to(_Where.BEFORE)
        if calls.closing and text.startswith(calls.closing.strip()):
            self._held = text[len(calls.closing.strip()) :]
            self._skips_lines = True
            return self._to(_Where.SAID)
        awaited = (calls.closing.strip(), calls.before.strip())
        if any(mark.startswith(text) for mark in awaited):
            # At the end of the output it is a mark that was broken off.
            self._held = "" if is_end else self._held
            return False
        self._held, self._skips_lines = text, True
        return self._to(_Where.SAID)

    def _no_call(self, found: list[Piece]) -> bool:
        """What looked like a call is text; after its mark a call may begin again."""
        assert self._calls is not None
        raw, mark = self._doubtful + self._held, self._calls.mark
        self._doubtful, self._reader = "", None
        place = raw.find(mark) + len(mark)
        if not mark:
            self._calls = None
        found.append(Said(raw[:place]))
        self._held, self._skips_lines = raw[place:], False
        return self._to(_Where.SAID)

    def _mark(self, mark: str) -> bool | None:
        """Takes a mark that may have white space around it: whether it was there, None where that is open."""
        mark, text = mark.strip(), self._held.lstrip()
        if text.startswith(mark):
            taken = len(self._held) - len(text) + len(mark)
            self._doubtful += self._held[:taken]
            self._held = self._held[taken:]
            return True
        return None if mark.startswith(text) else False

    def _take(self, rest: str, where: _Where) -> bool:
        """Goes on with what is left of the text that is held."""
        self._doubtful += self._held[: len(self._held) - len(rest)]
        self._held = rest
        return self._to(where)

    def _begins_with_text(self, is_end: bool) -> bool:
        """Leaves out the lines' ends that stand around a thought."""
        if self._skips_lines:
            self._held = self._held.lstrip("\n")
            self._skips_lines = not self._held
        return bool(self._held)

    def _give(self, found: list[Piece], kind: type[Said] | type[Thought], keep: int) -> None:
        place = len(self._held) - keep
        found.append(kind(self._held[:place]))
        self._held = self._held[place:]

    def _to(self, where: _Where) -> bool:
        self._where = where
        return True


def _num_open(text: str, mark: str, space: str) -> int:
    """Length of the end of a text that may turn out to belong to a mark: white space and its beginning."""
    num_begun = next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
    before = text[: len(text) - num_begun]
    return num_begun + len(before) - len(before.rstrip(space))


def _merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Without empty ones; neighbours of a kind are one."""
    found: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, CallBegun):
            found.append(piece)
            continue
        if not piece.text:
            continue
        last = found[-1] if found else None
        if type(last) is type(piece):
            assert not isinstance(last, CallBegun | None)
            found[-1] = replace(piece, text=last.text + piece.text)
        else:
            found.append(piece)
    return found


def _texts(body: Body) -> tuple[str, ...]:
    """Marks within a call."""
    return (body.before, body.between) if isinstance(body, NamedBody) else ()
