"""For measurements: which experts tokens are routed to, recorded to a file, or forced."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from expertmesh.commands.options import Option
from expertmesh.commands.values import positive
from expertmesh.shown_text import MAX_QUOTED
from moe_model.errors import ConfigError

DEFAULT_RECORDED_TOKENS = 1_000_000
MAX_EXPONENT, MAX_SEED = 8.0, 1 << 31
ZIPF, MASKED = "zipf", "masked-zipf"


@dataclass(frozen=True, slots=True)
class ForcedRouting:
    """`exponent` None: as in the trace at `path`. `is_masked`: routers choose themselves, among twice as many
    experts as a token gets."""

    exponent: float | None = None
    seed: int = 0
    is_masked: bool = False
    path: str = ""

    def __post_init__(self) -> None:
        if self.exponent is not None and not 0 <= self.exponent <= MAX_EXPONENT:
            raise ConfigError(
                f"force_routing: the exponent {self.exponent:g} is not in [0, {MAX_EXPONENT:g}]"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"force_routing: the seed {self.seed} is not in [0, {MAX_SEED}]")
        if (self.exponent is None) != bool(self.path):
            raise ConfigError("force_routing: say one of an exponent and a file")

    def __str__(self) -> str:
        law = MASKED if self.is_masked else ZIPF
        return self.path if self.exponent is None else f"{law}:{self.exponent:g}:{self.seed}"


def _forced(text: str) -> ForcedRouting:
    law, *values = text.split(":")
    if law not in (ZIPF, MASKED):
        return ForcedRouting(path=text)
    wrong = f"{text[:MAX_QUOTED]!r}: write {law}:S or {law}:S:SEED, as {law}:1.2:7"
    if not 1 <= len(values) <= 2 or not (len(values) == 1 or (values[1].isdecimal() and len(values[1]) < 11)):
        raise argparse.ArgumentTypeError(wrong)
    try:
        exponent = float(values[0])
    except ValueError:
        raise argparse.ArgumentTypeError(wrong) from None
    if not math.isfinite(exponent):
        raise argparse.ArgumentTypeError(wrong)
    try:
        return ForcedRouting(exponent, int(values[1]) if len(values) == 2 else 0, law == MASKED)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """`record`: a file that is written; None: nothing is recorded. `force` None: routers choose."""

    record: Annotated[
        Path | None,
        Option(
            "--record-routing",
            metavar="FILE",
            help="write which experts every token was routed to, for `expertmesh trace`; where FILE is there "
            "already, to FILE.1 and so on",
        ),
    ] = None
    record_tokens: Annotated[
        int,
        Option(
            "--record-routing-tokens",
            parse=positive,
            metavar="N",
            help="most tokens that --record-routing writes; then it stops, and serving goes on (%(default)s)",
        ),
    ] = DEFAULT_RECORDED_TOKENS
    force: Annotated[
        ForcedRouting | None,
        Option(
            "--force-routing",
            parse=_forced,
            metavar="SPEC",
            help="for measurements: outputs are not the model's. zipf:S[:SEED] sends the r-th expert of a "
            "layer a share 1/r^S of its rows; masked-zipf:S[:SEED] lets routers choose among twice as many "
            "experts as a token gets, drawn so; or a FILE of --record-routing, which is replayed",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.record_tokens < 1:
            raise ConfigError(f"record_tokens: {self.record_tokens} is less than 1")
