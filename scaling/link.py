"""What a network between two machines does to what they send each other."""

from msgspec import Struct

from scaling.ranges import Above, Amount, Percent


class Link(Struct, frozen=True, forbid_unknown_fields=True):
    """`gbit`: gigabits a second each way, None without a limit. `delay_ms`: of one way. `loss_percent`: of
    packets, each way."""

    gbit: Above | None = None
    delay_ms: Amount = 0.0
    loss_percent: Percent = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether nothing is emulated."""
        return self == Link()

    def __str__(self) -> str:
        parts = [] if self.gbit is None else [f"{self.gbit:g} Gbit/s"]
        parts += [f"{self.delay_ms:g} ms"] if self.delay_ms else []
        parts += [f"{self.loss_percent:g} % lost"] if self.loss_percent else []
        return ", ".join(parts) or "no limit"
