"""Where a JSON value that comes piece by piece ends. Looks at brackets and strings, and checks nothing."""


class JsonScan:
    """Of one object or array. `depth` is that of the text so far; not in a string while `ended`."""

    __slots__ = ("_escaped", "_in_string", "depth", "ended")

    def __init__(self) -> None:
        self.depth = 0
        self.ended = False
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """How many of the characters belong to the value; all of them where it goes on."""
        for place, character in enumerate(text):
            if self._in_string:
                self._in_a_string(character)
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth <= 0:
                    self.ended = True
                    return place + 1
        return len(text)

    def _in_a_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
