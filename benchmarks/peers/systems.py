"""Everything that is measured, opened by name, and closed with the block."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers import verdict
from benchmarks.peers.agreement import Agreement, Probed, check, check_alike, probes
from benchmarks.peers.jobs import Load, Probe
from benchmarks.peers.ours import Measure, OurModel, origin, our_engine
from benchmarks.peers.process import PeerError, PeerProcess, PeersEnvironment, peer
from coordinator.config.engine import EngineConfig
from moe_model.checkpoint.reader import Checkpoint


@dataclass(frozen=True, slots=True)
class Choice:
    """Which systems, by NAMES, and how they are set."""

    names: Sequence[str]
    llama_types: Sequence[str]
    num_workers: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Open systems in the order of their turns, the peers among them, and whether these agree. `failures`:
    why a peer is none of them, or no longer."""

    systems: Mapping[str, Measure]
    peers: Mapping[str, PeerProcess]
    agreement: Mapping[str, Agreement]
    failures: dict[str, str]

    @property
    def versions(self) -> dict[str, str]:
        return {name: process.version for name, process in self.peers.items()}

    def choose_ways(self, loads: Sequence[Load]) -> None:
        """Before the rounds, so that in the rounds all are measured one right after the other."""
        for name, process in self.peers.items():
            if name in self.failures:
                continue
            with _noted(self.failures, name):
                for load in loads:
                    process.choose(load)
                print(f"{name}: has chosen its ways", flush=True)


@contextmanager
def opened(
    choice: Choice,
    checkpoint: Checkpoint,
    config: EngineConfig,
    environment: PeersEnvironment,
    folder: Path,
) -> Iterator[Opened]:
    """`folder` has llama.cpp's files. A system that does not start, or computes otherwise, is a failure."""
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        peers = open_peers(environment, _peers(choice, config, checkpoint, folder), stack, failures)
        agreement = _agreement(peers, OurModel(checkpoint, config), environment, checkpoint, failures)
        systems: dict[str, Measure] = {}
        for name in choice.names:
            for found in [key for key in peers if key.startswith(name)]:
                systems[found] = peers[found].measure
            if name == verdict.ORIGIN:
                systems[name] = origin(checkpoint, config)
            elif name.startswith(verdict.OURS):
                ours = our_engine(checkpoint, *_ours(name, choice, config), environment.threads)
                systems[name] = stack.enter_context(ours)
        yield Opened(systems, peers, agreement, failures)


def open_peers(
    environment: PeersEnvironment,
    wanted: Iterable[tuple[str, str, Mapping[str, object]]],
    stack: ExitStack,
    failures: dict[str, str],
) -> dict[str, PeerProcess]:
    """Those that start, each in a process of its own: one that crashes takes none of the others with it."""
    found: dict[str, PeerProcess] = {}
    for name, module, options in wanted:
        with _noted(failures, name):
            found[name] = stack.enter_context(peer(environment, name, module, options))
    return found


@contextmanager
def _noted(failures: dict[str, str], name: str) -> Iterator[None]:
    try:
        yield
    except PeerError as error:
        failures[name] = str(error)
        print(f"{name} failed: {error}", flush=True)


def _peers(
    choice: Choice, config: EngineConfig, checkpoint: Checkpoint, folder: Path
) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Name, module and options of each peer process."""
    if verdict.LLAMA in choice.names:
        for kind in choice.llama_types:
            options = {"model": str(folder / f"{kind}.gguf"), "vocab_size": checkpoint.config.vocab_size}
            yield f"{verdict.LLAMA}-{kind}", "llama_peer", options
    if verdict.TRANSFORMERS in choice.names:
        model = str(checkpoint.path)
        yield verdict.TRANSFORMERS, "transformers_peer", {"model": model, "dtype": config.dtype}


def _ours(name: str, choice: Choice, config: EngineConfig) -> tuple[EngineConfig, int]:
    if name == verdict.OURS_WORKERS:
        return config, choice.num_workers
    if name not in verdict.OURS_ROUNDED:
        return config, 0
    experts, others = verdict.OURS_ROUNDED[name]
    return replace(config, expert_dtype=experts, shared_dtype=others), 0


def _agreement(
    peers: Mapping[str, PeerProcess],
    ours: OurModel,
    environment: PeersEnvironment,
    checkpoint: Checkpoint,
    failures: dict[str, str],
) -> dict[str, Agreement]:
    """Without a reference none is known to compute the model, and none is measured."""
    found: dict[str, Agreement] = {}
    reference: list[Probe] | None = None
    vocab_size = checkpoint.config.vocab_size
    options = {"model": str(checkpoint.path), "dtype": "float32"}
    if peers:
        with (
            _noted(failures, "reference"),
            peer(environment, "reference", "transformers_peer", options) as one,
        ):
            reference = probes(one, vocab_size)
    systems: dict[str, Probed] = {**peers, verdict.OURS: ours} if peers else {}
    for name, system in systems.items():
        if reference is None:
            failures.setdefault(name, f"{name}: there is no reference to compare it with")
            continue
        with _noted(failures, name):
            found |= check({name: system}, reference, vocab_size)
    if verdict.OURS in found and verdict.TRANSFORMERS in found:
        with _noted(failures, verdict.OURS):
            check_alike(found[verdict.OURS], found[verdict.TRANSFORMERS])
    return found
