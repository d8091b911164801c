"""One run of one cell at a server that is ready: warmed up, loaded, looked at before and after."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from expertmesh import Client
from scaling.cell import Cell, Load
from scaling.loads import measures as of_load
from scaling.loads.base import LoadRun, Target
from scaling.loads.senders import sender
from scaling.observation import Observation
from scaling.shape import config_of
from scaling.sweep import metrics, resources
from scaling.sweep.expert_loads import loads_of_experts
from scaling.sweep.fault_thread import FaultThread
from scaling.topology import Running

# A warm-up's requests are short: they are to bring code and weights into memory, and let it measure itself.
_WARMUP_TOKENS = 16
_TOKENIZER = "tokenizer.json"


class Order(Struct, frozen=True):
    """`base`: what a trace's path is relative to. `warmup`: requests before. `has_loads`: whether the
    experts' loads are looked at as well. `start_s`: how long the server took to start, 0 where it ran
    already. `folder`: for files of what sends the load."""

    cell: Cell
    base: Path
    number: int
    seed: int
    warmup: int
    has_loads: bool
    seconds: float
    start_s: float
    folder: Path


def run_cell(server: Running, checkpoint: Path, order: Order) -> Observation:
    """Raises RuntimeError, ClientError, ConfigError: a line that says why it did not run."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    cell, load_average = order.cell, os.getloadavg()[0]
    target = _target(server, checkpoint)
    if order.warmup:
        _warm_up(target, order)
    counts = metrics.counts(server.http_address)
    before = resources.look(server.pids())
    with FaultThread(server, cell.fault) as fault:
        run = _send(target, cell.load.below(order.base), order, fault.begin)
    pids = server.pids()
    after = resources.look(pids)
    memory = resources.memory_by_role(pids)
    between = metrics.Between(counts, metrics.counts(server.http_address))
    found: dict[str, Any] = of_load.measures(run) | metrics.measures(between)
    if not found["num_tokens"]:
        raise RuntimeError(f"no token came; {_errors(found['errors'])}")
    if order.has_loads:
        found["loads_LE"] = _loads(target, checkpoint, order)
    return Observation(
        cell=cell.key,
        round=order.number,
        seed=order.seed,
        started_at=started_at,
        start_s=order.start_s,
        cpu_s=resources.cpu_by_role(before, after, pids) | {"load": run.load_cpu_s},
        memory_mb=memory,
        joules=resources.joules(before, after),
        load_average=load_average,
        **found,
    )


def _target(server: Running, checkpoint: Path) -> Target:
    with Client(server.grpc_address) as client:
        model = client.model_info()
    tokenizer = checkpoint / _TOKENIZER
    return Target(
        grpc_address=server.grpc_address,
        http_address=server.http_address,
        model_name=model.model,
        vocab_size=model.vocab_size,
        max_seq_len=model.max_context_length,
        tokenizer=tokenizer if tokenizer.is_file() else None,
    )


def _warm_up(target: Target, order: Order) -> None:
    """By our own client whatever sends the load, with other prompts than those of the measurement."""
    load = order.cell.load
    at_once = min(order.warmup, load.concurrency or order.warmup)
    tokens = min(load.output_tokens, _WARMUP_TOKENS)
    warmup = Load(
        concurrency=at_once,
        num_requests=order.warmup,
        prompt_tokens=load.prompt_tokens,
        output_tokens=tokens,
    )
    run = sender("own").run(
        target, warmup, (order.seed + 1) % (1 << 31), order.folder, lambda: None, order.seconds
    )
    found = of_load.measures(run)
    if found["num_failed"]:
        raise RuntimeError(f"the warm-up failed; {_errors(found['errors'])}")


def _send(target: Target, load: Load, order: Order, on_begin: Any) -> LoadRun:
    started = time.monotonic()
    run = sender(load.tool).run(target, load, order.seed, order.folder, on_begin, order.seconds)
    return run if run.began_s else msgspec.structs.replace(run, began_s=started)


def _loads(target: Target, checkpoint: Path, order: Order) -> list[list[int]]:
    """Empty where the server does not tell them: that is no reason to lose a measurement."""
    config = config_of(checkpoint)
    try:
        return loads_of_experts(target, len(config.moe_layers), config.n_experts, order.cell.load, order.seed)
    except RuntimeError:
        return []


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{num} x {error}" for error, num in errors.items()) or "no request was sent"
