"""A time that a test sets."""


class Clock:
    """Seconds, for whatever takes a clock."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
