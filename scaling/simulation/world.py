"""One simulation: machines, network, workers, coordinators and clients put together, and run to its end."""

from collections.abc import Generator, Mapping
from itertools import count
from typing import Any

import numpy as np
from simpy import Environment, Event

from coordinator.engine.core.overlap import Overlap
from coordinator.engine.core.sequence import Sequence
from moe_model.errors import ConfigError
from scaling.costs.forms import weight_bytes
from scaling.shape import Shape
from scaling.simulation.calls import CallPool
from scaling.simulation.engine import SimEngine
from scaling.simulation.faults import Breaking
from scaling.simulation.machine import Cores
from scaling.simulation.messages import Messages
from scaling.simulation.network import Network
from scaling.simulation.outcome import Outcome, Served, gaps_ms, split_ms, spread
from scaling.simulation.plain import PlainPool
from scaling.simulation.sequences import make_scheduler, make_sequence, usual_kv_bytes
from scaling.simulation.setting import Ask, CoordinatorPlace, Demand, Setting
from scaling.simulation.split import Split, binds
from scaling.simulation.workers import Holders, first_holders, make_workers

Work = Generator[Event, Any, None]
Held = dict[int, list[tuple[int, ...]]]


class World:
    """`is_plain` None: the quick way where it gives the same; False: each call by itself."""

    def __init__(self, setting: Setting, demand: Demand, *, is_plain: bool | None = None) -> None:
        """Raises ConfigError."""
        self.setting, self.demand, self.shape = setting, demand, setting.shape
        self.env = Environment()
        self.rng = np.random.default_rng((setting.seed, 1))
        self.network = Network(setting.ways, np.random.default_rng((setting.seed, 2)))
        places = (*setting.coordinators, *setting.workers)
        by_name = {machine.name: machine for machine in setting.machines.machines}
        self.cores = {
            name: Cores(self.env, by_name[name].cores)
            for name in dict.fromkeys(place.machine for place in places)
        }
        self.workers = make_workers(setting, self.shape, self.env, self.cores)
        self.messages = Messages.of(
            *(self.shape, setting.dtype, setting.pool.wire_dtype, setting.pool.combine.value),
            setting.engine.kernels,
        )
        self.is_plain = setting.is_plain if is_plain is None else is_plain
        self.holders: Holders = first_holders(setting, self.shape) if self.workers else {}
        self.pools: list[CallPool] = []
        self.breaking = Breaking(self)
        self._asks = iter(demand.asks)
        self._open: dict[Sequence, tuple[Served, Event]] = {}
        self.served: list[Served] = []
        self._numbers = count()
        self.engines = [self._engine(place) for place in setting.coordinators]

    def run(self, until: float = 1e7) -> Outcome:
        """Until every request has ended. Raises ConfigError where that takes longer than `until` seconds."""
        env, clients = self.env, self._clients()
        for engine in self.engines:
            env.process(engine.run())
        for fault in self.setting.faults:
            env.process(self.breaking.happens(fault))
        limit = env.timeout(until)
        env.run(until=env.all_of(clients) | limit)
        if limit.processed:
            raise ConfigError(f"the simulated load has not ended after {until:g} simulated seconds")
        return self.outcome()

    def publish(self, holders: Holders) -> None:
        """From now on experts are there."""
        self.holders = holders
        held = held_by_layer(self.shape, holders)
        for pool in self.pools:
            pool.publish(held)

    def outcome(self) -> Outcome:
        served = self.served
        tokens = [at for request in served for at in request.token_s]
        begun = min((request.sent_s for request in served), default=0.0)
        seconds = max(tokens, default=begun) - begun
        split, steps = Split(), [step for engine in self.engines for step in engine.counts.steps]
        for engine in self.engines:
            split.add(engine.counts.split)
        gaps = gaps_ms(served)
        firsts = [1e3 * (each.token_s[0] - each.sent_s) for each in served if each.token_s]
        sent, received = self.num_bytes()
        return Outcome(
            seconds=seconds,
            num_requests=len(served),
            num_failed=sum(request.failed for request in served),
            num_tokens=len(tokens),
            tokens_per_s=len(tokens) / seconds if seconds else 0.0,
            first_token_ms=spread(firsts),
            gap_ms=spread(gaps),
            max_gap_ms=max(gaps, default=0.0),
            step_ms=1e3 * sum(step.seconds for step in steps) / max(1, len(steps)),
            num_steps=len(steps),
            split_ms=split_ms(split, len(steps)),
            shares=split.shares(),
            binds=binds(split, self.front_share(seconds)),
            bytes_sent=sent,
            bytes_received=received,
            num_hedged=sum(pool.num_hedged for pool in self.pools),
            num_retried=sum(engine.counts.num_retried for engine in self.engines),
            num_pairs=sum(engine.pool.num_pairs for engine in self.engines if engine.pool is not None),
        )

    def _engine(self, place: CoordinatorPlace) -> SimEngine:
        setting, shape, cores = self.setting, self.shape, self.cores[place.machine]
        costs, group = setting.costs(place, shape), cores.group(place.quota, setting.period_s)
        overlap = Overlap(setting.engine.micro_batches, lambda: float(self.env.now))
        longest = max((ask.num_prompt + ask.num_output for ask in self.demand.asks), default=1)
        pool: PlainPool | CallPool | None = None
        if self.workers and self.is_plain:
            held = held_by_layer(shape, self.holders)
            pool = PlainPool(
                *(self.env, self.network, self.messages, self.workers, held, place.where, costs),
                *(cores, group),
            )
        elif self.workers:
            pool = CallPool(
                *(self.env, setting.pool, self.network, self.messages, self.workers, place.where, costs),
                *(cores, group, self.breaking.lost),
            )
            pool.publish(held_by_layer(shape, self.holders))
            pool.can_fail = bool(setting.faults)
            self.pools.append(pool)
        scheduler = make_scheduler(setting, self._kv_bytes(place), longest, len(self.demand.asks))
        return SimEngine(
            *(self.env, shape, scheduler, costs, cores, group, cores.group(), place.threads),
            *(setting.routing, self.rng, self._tokens, pool),
            overlap if self.workers else None,
            is_forced=setting.is_forced,
        )

    def _kv_bytes(self, place: CoordinatorPlace) -> float:
        setting = self.setting
        if setting.engine.kv_cache_bytes is not None:
            return setting.engine.kv_cache_bytes
        memory = setting.machines.named(place.machine).memory_gb
        return usual_kv_bytes(memory, coordinator_bytes(setting, self.shape))

    def _clients(self) -> list[Event]:
        env, demand = self.env, self.demand
        if demand.concurrency is None:
            asks = list(self._asks)
            return [env.process(self._late(index, ask)) for index, ask in enumerate(asks)]
        return [env.process(self._client(index)) for index in range(demand.concurrency)]

    def _client(self, index: int) -> Work:
        """The next request as the last one ends."""
        for ask in self._asks:
            yield self.send(index, ask)

    def _late(self, index: int, ask: Ask) -> Work:
        yield self.env.timeout(ask.at_s or 0.0)
        yield self.send(index, ask)

    def send(self, index: int, ask: Ask) -> Event:
        """Happens when its last token is there, or it has failed."""
        engine, sequence, ended = self._opened(index, ask)
        self.env.process(engine.arrive(sequence))
        return ended

    def place(self, index: int, ask: Ask) -> None:
        """A request that has passed the front already."""
        engine, sequence, _ = self._opened(index, ask)
        engine.submit(sequence)

    def _opened(self, index: int, ask: Ask) -> tuple[SimEngine, Sequence, Event]:
        config, served, ended = self.setting.config, Served(ask.num_prompt, self.env.now), self.env.event()
        longest = min(self.setting.engine.max_context or config.max_seq_len, config.max_seq_len)
        block = self.setting.engine.block_size
        sequence = make_sequence(ask, next(self._numbers), longest, block, self.rng)
        self._open[sequence] = served, ended
        self.served.append(served)
        return self.engines[index % len(self.engines)], sequence, ended

    def _tokens(self, drawn: list[Sequence], ended: list[Sequence], failed: list[Sequence]) -> None:
        for sequence in drawn:
            # One that was lost meanwhile is told no more.
            if sequence in self._open:
                self._open[sequence][0].token_s.append(self.env.now)
        for sequence in [*ended, *failed]:
            served, event = self._open.pop(sequence)
            served.failed = sequence in failed
            event.succeed()

    def front_share(self, seconds: float) -> float:
        """Of the coordinators' cores."""
        used = sum(engine.front.used for engine in self.engines)
        num = sum(self.setting.machines.named(place.machine).cores for place in self.setting.coordinators)
        return used / (num * seconds) if seconds else 0.0

    def num_bytes(self) -> tuple[float, float]:
        pools = [engine.pool for engine in self.engines if engine.pool is not None]
        return sum(pool.num_bytes[0] for pool in pools), sum(pool.num_bytes[1] for pool in pools)


def coordinator_bytes(setting: Setting, shape: Shape) -> float:
    """Of what a coordinator holds: all experts too where there are no workers."""
    own = (shape.shared_params + shape.embedding_params) * weight_bytes(setting.shared_form)
    here = 0 if setting.workers else shape.num_experts * shape.expert_params * weight_bytes(setting.form)
    return own + here


def held_by_layer(shape: Shape, holders: Mapping[tuple[int, int], tuple[int, ...]]) -> Held:
    experts = range(shape.n_experts)
    return {layer: [holders[layer, expert] for expert in experts] for layer in shape.moe_layers}


def simulate(setting: Setting, demand: Demand) -> Outcome:
    """Raises ConfigError."""
    return World(setting, demand).run()
