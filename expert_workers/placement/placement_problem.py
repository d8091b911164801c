"""What is to be placed and on which workers, and the copies of modules while they are being placed. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moe_model.errors import ConfigError
from moe_model.layers.dispatch import ExpertKey

# New holders for modules, tried before they are put in force.
Change = Mapping[ExpertKey, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker may be given."""

    rank: int
    # Relative: twice the speed, twice the load.
    speed: float = 1.0
    # As many as its memory holds; None is any number.
    max_modules: int | None = None
    # The failure domain.
    node: str = ""


@dataclass(frozen=True, slots=True)
class PlacementProblem:
    """What is to be placed, the hottest modules of a layer first, and on whom; by rank and by key."""

    layers: Mapping[int, tuple[ExpertKey, ...]]
    load: Mapping[ExpertKey, float]
    speed: Mapping[int, float]
    room: Mapping[int, int]
    node: Mapping[int, str]
    # As many copies of each module as there shall be without the redundant ones.
    replicas: int
    num_nodes: int

    @classmethod
    def of(
        cls,
        keys: Iterable[ExpertKey],
        workers: Sequence[Share],
        replicas: int,
        loads: Mapping[ExpertKey, float] | None,
    ) -> "PlacementProblem":
        """Raises ConfigError."""
        if not workers:
            raise ConfigError("workers: 0 is less than 1")
        if replicas < 1:
            raise ConfigError(f"replicas: {replicas} is less than 1")
        for share in workers:
            if not share.speed > 0:
                raise ConfigError(f"worker {share.rank}: its speed, {share.speed}, is not above 0")
        by_layer: dict[int, list[ExpertKey]] = {}
        for key in sorted(set(keys)):
            by_layer.setdefault(key[0], []).append(key)
        load: dict[ExpertKey, float] = {}
        for layer in by_layer.values():
            load.update(_loads_of(layer, loads or {}))
        num_keys = len(load)
        shares = sorted(workers, key=lambda share: share.rank)
        return cls(
            {n: tuple(sorted(layer, key=lambda key: (-load[key], key))) for n, layer in by_layer.items()},
            load,
            {share.rank: share.speed for share in shares},
            {s.rank: num_keys if s.max_modules is None else min(s.max_modules, num_keys) for s in shares},
            {share.rank: share.node for share in shares},
            min(replicas, len(shares)),
            len({share.node for share in shares}),
        )

    @property
    def keys(self) -> Iterable[ExpertKey]:
        return self.load

    def mean_of(self, layer: int) -> float:
        """The time of a layer if every worker were always busy."""
        return sum(self.load[key] for key in self.layers[layer]) / sum(self.speed.values())

    def nodes_of(self, ranks: Iterable[int]) -> int:
        """On how many different nodes these workers are."""
        return len({self.node[rank] for rank in ranks})


def _loads_of(layer: Sequence[ExpertKey], loads: Mapping[ExpertKey, float]) -> dict[ExpertKey, float]:
    known = [loads[key] for key in layer if key in loads]
    if not sum(known) > 0:
        return dict.fromkeys(layer, 1.0)
    usual = sum(known) / len(known)
    return {key: loads.get(key, usual) for key in layer}


def wanted_copies(
    problem: PlacementProblem, redundant: int, held: Mapping[ExpertKey, Sequence[int]]
) -> dict[ExpertKey, int]:
    """How many copies of each module there shall be.

    Where memory is short, and for redundant copies, modules that are held more often come before the hottest.
    Raises ConfigError where not even one of each fits.
    """
    num_keys, num_workers = len(problem.load), len(problem.speed)
    space = sum(problem.room.values())
    if space < num_keys:
        raise ConfigError(f"max_modules: {space} modules fit on the workers, {num_keys} are to be placed")
    if not num_keys:
        return {}
    level = min(problem.replicas, space // num_keys)
    wanted = dict.fromkeys(problem.load, level)
    left = space - level * num_keys
    if level < problem.replicas:
        for key in sorted(
            problem.load, key=lambda k: (len(held.get(k, ())) <= level, -problem.load[k], k[1], k[0])
        )[:left]:
            wanted[key] += 1
        return wanted
    # None but the first of a layer can be the hottest, unless it is held already.
    candidates = {
        layer: {*keys[:redundant], *(key for key in keys if len(held.get(key, ())) > level)}
        for layer, keys in problem.layers.items()
    }
    for _ in range(redundant):
        for keys in candidates.values():
            free = [key for key in keys if wanted[key] < num_workers]
            if free and left:
                wanted[_next_redundant(problem, wanted, held, free)] += 1
                left -= 1
    return wanted


def _next_redundant(
    problem: PlacementProblem,
    wanted: Mapping[ExpertKey, int],
    held: Mapping[ExpertKey, Sequence[int]],
    keys: Iterable[ExpertKey],
) -> ExpertKey:
    return max(keys, key=lambda k: (len(held.get(k, ())) > wanted[k], problem.load[k] / wanted[k], -k[1]))


@dataclass(slots=True)
class DraftPlacement:
    """Which worker holds what. `pinned` copies are loaded already and stay where they are."""

    problem: PlacementProblem
    wanted: Mapping[ExpertKey, int]
    pinned: set[tuple[ExpertKey, int]] = field(default_factory=set)
    holders: dict[ExpertKey, tuple[int, ...]] = field(init=False)
    held: dict[tuple[int, int], set[ExpertKey]] = field(init=False)
    times: dict[int, dict[int, float]] = field(init=False)
    total: dict[int, int] = field(init=False)
    shared: dict[int, dict[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        ranks = self.problem.speed
        self.holders = dict.fromkeys(self.problem.load, ())
        self.held = {(layer, rank): set() for layer in self.problem.layers for rank in ranks}
        self.times = {layer: dict.fromkeys(ranks, 0.0) for layer in self.problem.layers}
        self.total = dict.fromkeys(ranks, 0)
        self.shared = {rank: dict.fromkeys(ranks, 0) for rank in ranks}

    def charge(self, key: ExpertKey, ranks: Sequence[int]) -> float:
        """The time that a module costs each of these holders, as if copies yet to come were there."""
        if not ranks:
            return 0.0
        speed = sum(map(self.problem.speed.__getitem__, ranks))
        return self.problem.load[key] / (speed * max(1.0, self.wanted.get(key, 0) / len(ranks)))

    def charge_moved(self, key: ExpertKey, giver: int, taker: int) -> float:
        """The charge with a copy on another worker, when no more copies are to come."""
        speed = self.problem.speed
        held = sum(map(speed.__getitem__, self.holders[key]))
        return self.problem.load[key] / (held - speed[giver] + speed[taker])

    def put(self, key: ExpertKey, ranks: tuple[int, ...]) -> None:
        """Makes these the holders of a module."""
        for holders, sign in ((self.holders[key], -1), (ranks, 1)):
            times, charge = self.times[key[0]], self.charge(key, holders)
            for rank in holders:
                times[rank] += sign * charge
                self.total[rank] += sign
                for other in holders:
                    self.shared[rank][other] += sign
        for rank in self.holders[key]:
            self.held[key[0], rank].discard(key)
        for rank in ranks:
            self.held[key[0], rank].add(key)
        self.holders[key] = ranks

    def keep(self, held: Mapping[ExpertKey, tuple[int, ...]]) -> None:
        """Takes over and pins what is held, less what there is no room for and copies that are not wanted."""
        for key, ranks in held.items():
            self.put(key, ranks)
        for key in self.problem.load:
            while len(self.holders[key]) > self.wanted[key]:
                self._drop(key)
        for rank, room in self.problem.room.items():
            while self.total[rank] > room:
                key = min(
                    self.modules_of(rank), key=lambda k: (-len(self.holders[k]), self.problem.load[k], k)
                )
                self.put(key, tuple(other for other in self.holders[key] if other != rank))
        self.pinned = {(key, rank) for key, ranks in self.holders.items() for rank in ranks}

    def settle(self) -> None:
        """From here on no more copies are to come."""
        self.wanted = {}
        for key, ranks in self.holders.items():
            self.put(key, ())
            self.put(key, ranks)

    def move(self, key: ExpertKey, giver: int, taker: int) -> None:
        self.put(key, tuple(taker if rank == giver else rank for rank in self.holders[key]))

    def apply(self, change: Change) -> None:
        for key, ranks in change.items():
            self.put(key, ranks)

    def modules_of(self, rank: int) -> list[ExpertKey]:
        """What a worker holds, the coldest of each layer first."""
        load = self.problem.load
        return [
            key
            for layer in self.problem.layers
            for key in sorted(self.held[layer, rank], key=lambda key: (load[key], key))
        ]

    def _drop(self, key: ExpertKey) -> None:
        ranks, nodes, times = self.holders[key], self.problem.node, self.times[key[0]]
        on_node = [nodes[rank] for rank in ranks]
        worst = max(
            ranks,
            key=lambda r: (
                self.total[r] > self.problem.room[r],
                on_node.count(nodes[r]),
                times[r],
                self.total[r],
                r,
            ),
        )
        self.put(key, tuple(rank for rank in ranks if rank != worst))

    def peak_after(self, change: Change, giver: int | None) -> float | None:
        """The most time of the giver and of the workers that a change burdens, after it; None: not allowed.

        The modules of a change are of one layer.
        """
        problem, grown, burden = self.problem, dict[int, int](), dict[int, float]()
        for key, ranks in change.items():
            before = self.holders[key]
            if problem.num_nodes > 1 and problem.nodes_of(ranks) < min(problem.nodes_of(before), len(ranks)):
                return None
            for holders, sign in ((before, -1), (ranks, 1)):
                charge = sign * self.charge(key, holders)
                for rank in holders:
                    grown[rank] = grown.get(rank, 0) + sign
                    burden[rank] = burden.get(rank, 0.0) + charge
        if any(more > 0 and self.total[rank] + more > problem.room[rank] for rank, more in grown.items()):
            return None
        times = self.times[next(iter(change))[0]]
        return max(
            (
                times[rank] + more
                for rank, more in burden.items()
                if more > 1e-9 * times[rank] or rank == giver
            ),
            default=0.0,
        )

    @property
    def time(self) -> float:
        """Of all layers, one after the other."""
        return sum(map(self.time_of, self.problem.layers))

    def time_of(self, layer: int) -> float:
        return max(self.times[layer].values())

    def result(self) -> dict[ExpertKey, tuple[int, ...]]:
        return dict(self.holders)
