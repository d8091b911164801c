"""Text from outside, as it may be shown on a terminal, in a log and in an answer.

It may hold what moves a terminal's cursor, begins a line or turns the direction of writing, at any length.
"""

# Of a text that a message repeats.
MAX_QUOTED = 80


def printable(text: str) -> str:
    """A question mark for each character that cannot be shown."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def escaped(text: str) -> str:
    """Its escape, such as `\\x1b`, for each character that cannot be shown."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def one_line(text: str) -> str:
    """Printable, and white space is single spaces."""
    return printable(" ".join(text.split()))


def visible_ascii(text: str) -> str:
    """A question mark for each character that is neither visible ASCII nor a space."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)


def quoted(text: str) -> str:
    """In quotes, with escapes, and not at any length."""
    return repr(_short(text))


def quoted_ascii(text: str) -> str:
    """The same in ASCII."""
    return ascii(_short(text))


def _short(text: str) -> str:
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "..."
