"""Machines and the links between them: what `probe` writes, and `plan` and `simulate` read.

A rate is measured with the product's own kernels, with weights that come from memory and not from a cache.
"""

from typing import Annotated

from msgspec import Meta, Struct

from moe_model.errors import ConfigError
from scaling.link import Link
from scaling.ranges import Above, Amount, Name


class ProductRate(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a product of `rows` rows with matrices of one stored form (float32, bfloat16, int8, q8, q4, ...), by
    all cores together: 1e9 operations a second, a multiplication and an addition being two, and 1e9 bytes of
    weights a second."""

    form: Name
    rows: Annotated[int, Meta(ge=1)]
    gflops: Above
    gbytes_per_s: Above


class Overheads(Struct, frozen=True, forbid_unknown_fields=True):
    """What a step costs beyond its kernels, in microseconds, fitted to whole steps of models that are made
    for it (see docs/probe.md). `step_us`: any step. `layer_us`: each layer. `row_us`: each row of a step.
    `token_us`: each token that goes out to a caller (front, client's share of the cores included). `call_us`:
    the coordinator's own time for a call to one worker. `worker_us`: a worker's for a call. `byte_ns`: of
    each byte on its way, both ends together. `forced_us`: each layer of a step whose routing is forced."""

    step_us: Amount = 0.0
    layer_us: Amount = 0.0
    row_us: Amount = 0.0
    token_us: Amount = 0.0
    call_us: Amount = 0.0
    worker_us: Amount = 0.0
    byte_ns: Amount = 0.0
    forced_us: Amount = 0.0
    kernels: Above = 1.0


class Machine(Struct, frozen=True, forbid_unknown_fields=True):
    """`cores` may be a part of one, where a quota says so. `kernels`: the instruction set. `rates`: empty
    where nothing was measured: then `gbytes_per_s` and `gflops` (of bfloat16) are all that is known."""

    name: Name
    cores: Above
    memory_gb: Above
    gbytes_per_s: Above
    gflops: Above
    kernels: str = ""
    disk_mb_per_s: Above | None = None
    rates: tuple[ProductRate, ...] = ()
    overheads: Overheads = Overheads()
    has_gpu: bool = False


class Path(Struct, frozen=True, forbid_unknown_fields=True):
    """Between two machines, both ways alike. `round_trip_us`: of a small message, as a dispatch sends it."""

    between: tuple[Name, Name]
    gbit: Above
    round_trip_us: Amount
    loss_percent: Amount = 0.0


class Machines(Struct, frozen=True, forbid_unknown_fields=True):
    """`link`: of each pair that `paths` does not name; None: all are named, or on one machine."""

    machines: Annotated[tuple[Machine, ...], Meta(min_length=1)]
    paths: tuple[Path, ...] = ()
    link: Link | None = None
    commit: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        names = [machine.name for machine in self.machines]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"machine {name!r} is there twice")
        for path in self.paths:
            for name in path.between:
                if name not in names:
                    raise ValueError(f"a path names {name!r}, which is no machine")

    def named(self, name: str) -> Machine:
        """Raises ConfigError."""
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise ConfigError(
            f"there is no machine {name!r}; there are {', '.join(m.name for m in self.machines)}"
        )

    def path(self, one: str, other: str) -> Path:
        """Between two machines; a machine and itself: as fast as its memory. Raises ConfigError."""
        if one == other:
            return Path((one, other), 8 * self.named(one).gbytes_per_s, 0.0)
        for path in self.paths:
            if set(path.between) == {one, other}:
                return path
        if self.link is None or self.link.gbit is None:
            raise ConfigError(f"nothing says how fast the network between {one} and {other} is")
        return Path((one, other), self.link.gbit, 2e3 * self.link.delay_ms, self.link.loss_percent)
