"""One point of an experiment: which model, on which workers, over which network, under which load.

A cell is a value. Its name is made of what it says, so that results of two runs can be compared cell by cell.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from moe_model.names import DtypeName
from scaling.link import Link
from scaling.ranges import Above, Amount, Count, Name, Positive, Share

Where = Literal["local", "namespaces", "cluster"]
# How experts are skewed: a router's choices are replaced, or what it may choose from is cut down.
Skewing = Literal["forced", "masked"]
FaultKind = Literal["kill", "pause", "slow", "cut"]
Option = str | int | float | bool


class Skew(Struct, frozen=True, forbid_unknown_fields=True):
    """Experts by Zipf's law: the r-th most wanted of a layer gets a share of 1/r^zipf. Another order of
    experts in each layer, by the seed. `zipf` 0: every expert alike; None: the model's own routers choose."""

    zipf: Annotated[float, Meta(ge=0, le=8)] | None = None
    how: Skewing = "forced"

    def __str__(self) -> str:
        return "own routing" if self.zipf is None else f"Zipf {self.zipf:g} ({self.how})"


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to one worker at `at_s` seconds of the measured load. `kill`: SIGKILL. `pause`: SIGSTOP
    for `seconds`. `slow`: it gets `share` of its processor time for `seconds`. `cut`: its link carries
    nothing for `seconds`; of namespaces only."""

    kind: FaultKind
    at_s: Amount = 1.0
    worker: Count = 0
    seconds: Above = 1.0
    share: Annotated[float, Meta(gt=0, le=1)] = 0.2


class Host(Struct, frozen=True, forbid_unknown_fields=True):
    """The caps of one worker's machine. `cores`: of this machine's, by a quota; None without a limit."""

    cores: Above | None = None
    memory_mb: Above | None = None
    link: Link | None = None


class Load(Struct, frozen=True, forbid_unknown_fields=True):
    """So many requests at once (`concurrency`), or so many a second (`rate`, Poisson); one of them.

    `tool`: what sends them, our own client or a load generator by its name. `trace`: a file whose requests
    are sent at their times and lengths, of `trace_format`; with `rate`, its times are stretched to so many a
    second, with `concurrency` they do not count. Without one, prompts and outputs are as long as said or, by
    `lengths`, so long on the average: see scaling.workloads.lengths."""

    concurrency: Positive | None = None
    rate: Above | None = None
    num_requests: Positive | None = None
    prompt_tokens: Positive = 32
    output_tokens: Positive = 32
    tool: Name = "own"
    trace: Name | None = None
    trace_format: Name | None = None
    lengths: Literal["exact", "uniform", "lognormal"] = "exact"
    length_spread: Share = 0.5

    def __str__(self) -> str:
        how = f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g}/s"
        return f"{how}, {self.tokens}"

    @property
    def tokens(self) -> str:
        """How long requests are, in words."""
        spread = "" if self.lengths == "exact" else f", {self.lengths} {self.length_spread:g}"
        return f"{self.prompt_tokens} + {self.output_tokens} tokens{spread}"

    def below(self, base: Path) -> "Load":
        """With the path of its trace, which is relative to `base`, as this process finds it."""
        return self if self.trace is None else msgspec.structs.replace(self, trace=str(base / self.trace))


class Cell(Struct, frozen=True, forbid_unknown_fields=True):
    """`model`: a checkpoint's folder, or a file with the config.json of a family, of which a model with
    random weights is made. `hosts`: caps of workers' machines, one for each; empty: all alike. `serve`:
    further options of `expertmesh serve`, by their names without dashes in front."""

    model: Name
    load: Load
    dtype: DtypeName = "bfloat16"
    layers: Positive | None = None
    workers: Count = 0
    replicas: Positive = 1
    where: Where = "local"
    hosts: tuple[Host, ...] = ()
    transport: Name = "stream"
    wire_dtype: DtypeName = "float32"
    combine: Literal["exact", "sum"] = "exact"
    skew: Skew = Skew()
    link: Link = Link()
    fault: Fault | None = None
    plan: Name | None = None
    serve: dict[str, Option] = {}

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits: equal for equal cells, today and in another process."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]

    @property
    def label(self) -> str:
        """For people, a line: what cells of one experiment usually differ in."""
        parts = [self.model.rpartition("/")[2], f"{self.workers} workers", str(self.load)]
        parts += [f"{self.replicas} copies"] if self.replicas > 1 else []
        parts += [str(self.skew)] if self.skew.zipf is not None else []
        parts += [str(self.link)] if not self.link.is_plain else []
        parts += ["uneven hosts"] if self.hosts else []
        parts += [self.fault.kind] if self.fault else []
        return ", ".join(parts)


# What says nothing where all experts are in the engine's process, and what it is where it is not said.
_OF_WORKERS = ("hosts", "fault", "link", "replicas", "transport", "wire_dtype", "combine")
_USUAL = {name: getattr(Cell("", Load()), name) for name in _OF_WORKERS}


def check(cell: Cell) -> list[str]:
    """What cannot be done of a cell, a sentence each; empty: it can be tried."""
    load, found = cell.load, []
    if (load.concurrency is None) == (load.rate is None) and load.trace is None:
        found.append("load: say one of concurrency and rate")
    if load.trace is None and load.trace_format is not None:
        found.append("load: trace_format: needs a trace")
    if cell.skew.how == "masked" and cell.skew.zipf is None:
        found.append("skew: masked: needs zipf")
    if cell.workers == 0:
        found += [f"{name}: needs workers" for name in _OF_WORKERS if getattr(cell, name) != _USUAL[name]]
    if cell.workers and cell.replicas > cell.workers:
        found.append(f"replicas: {cell.replicas} copies need as many workers, there are {cell.workers}")
    if cell.hosts and len(cell.hosts) != cell.workers:
        found.append(f"hosts: {len(cell.hosts)} for {cell.workers} workers")
    if cell.where != "namespaces" and (not cell.link.is_plain or cell.hosts):
        found.append("link, hosts: need where: namespaces")
    if cell.fault is not None and cell.fault.worker >= cell.workers:
        found.append(f"fault: worker {cell.fault.worker} of {cell.workers}")
    if cell.fault is not None and cell.fault.kind == "cut" and cell.where != "namespaces":
        found.append("fault: cut needs where: namespaces")
    return found
