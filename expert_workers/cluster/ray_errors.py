"""What an error of Ray's says, in one line."""


def first_line(error: object) -> str:
    """The first line of an error's text, as Ray's go on with tracebacks and advice."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
