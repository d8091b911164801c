"""Machines and the links between them: what `probe` writes, and `plan` and `simulate` read.

A rate is measured with the product's own kernels, with weights that come from memory and not from a cache.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from moe_model.errors import ConfigError
from scaling.link import Link
from scaling.ranges import Above, Amount, Name, Percent

# A product whose rows are rounded as its weights are; one whose rows are not, as queries and keys have it; a
# whole expert, among others of its layer: gate, up, activation, down.
ProductKind = Literal["linear", "exact", "expert"]


class ProductRate(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a product of `rows` rows with matrices of one stored form (float32, bfloat16, int8, q8, q4, ...), by
    all cores together: 1e9 operations a second, a multiplication and an addition being two, and 1e9 bytes of
    weights a second. `matrix_kb`: KiB that a matrix takes, or an expert; 0: any. `threads`: by so many; 0: by
    as many as the machine has cores."""

    form: Name
    rows: Annotated[int, Meta(ge=1)]
    gflops: Above
    gbytes_per_s: Above
    kind: ProductKind = "linear"
    matrix_kb: Amount = 0.0
    threads: Annotated[int, Meta(ge=0)] = 0


class Overheads(Struct, frozen=True, forbid_unknown_fields=True):
    """What a step costs beyond its kernels, in microseconds, fitted to whole steps of models that are made
    for it (see docs/probe.md). `step_us`: any step. `layer_us`: each layer. `row_us`: each row of a step.
    `publish_us`: each step whose tokens go out to callers, and `token_us`: each such token (front, client's
    share of the cores included). `call_us`: the coordinator's own time for a call to one worker. `worker_us`:
    a worker's for a call. `byte_ns`: of each byte on its way, both ends together. `forced_us`: each layer of
    a step whose routing is forced.
    `value_ns`, in nanoseconds: of each value of a row (d_model of them) in each layer: norms, positions,
    residuals, the router's rule. `draw_ns`: of each logit of a row that a token is drawn of.
    `attention_value_ns`: of each value that a query or a weight of attention meets. `experts_us`: a call of a
    layer's experts beside these. `kernels`: how much longer products take in a step than one by one, with
    weights from memory; `cached`: with weights that the last cache still has."""

    step_us: Amount = 0.0
    layer_us: Amount = 0.0
    row_us: Amount = 0.0
    token_us: Amount = 0.0
    publish_us: Amount = 0.0
    call_us: Amount = 0.0
    worker_us: Amount = 0.0
    byte_ns: Amount = 0.0
    forced_us: Amount = 0.0
    kernels: Above = 1.0
    cached: Above = 1.0
    value_ns: Amount = 0.0
    draw_ns: Amount = 0.0
    attention_value_ns: Amount = 0.0
    experts_us: Amount = 0.0


class FittedStep(Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of step that overheads were fitted to: milliseconds that it took, and those that the fit says.
    `workers`: 0: experts in the engine's process. `phase`: prefill, decode, or service: a token's share of a
    whole server's time."""

    model: Name
    phase: Literal["prefill", "decode", "service"]
    batch: Annotated[int, Meta(ge=1)]
    workers: Annotated[int, Meta(ge=0)]
    measured_ms: Above
    fitted_ms: Above

    @property
    def error(self) -> float:
        """Of what the fit says, as a share."""
        return self.fitted_ms / self.measured_ms - 1


class Machine(Struct, frozen=True, forbid_unknown_fields=True):
    """`cores` may be a part of one, where a quota says so. `kernels`: the instruction set. `rates`: empty
    where nothing was measured: then `gbytes_per_s` and `gflops` (of bfloat16) are all that is known. `fit`:
    how well its overheads explain what they were fitted to. `load_average`: before it was measured.
    `cache_mb`: 1e6 bytes of the last cache; 0: not known."""

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
    fit: tuple[FittedStep, ...] = ()
    load_average: Amount = 0.0
    cache_mb: Amount = 0.0


class Path(Struct, frozen=True, forbid_unknown_fields=True):
    """Between two machines, both ways alike. `round_trip_us`: of a small message, as a dispatch sends it."""

    between: tuple[Name, Name]
    gbit: Above
    round_trip_us: Amount
    loss_percent: Percent = 0.0


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
