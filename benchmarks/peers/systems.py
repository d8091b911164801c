"""Everything that is measured, opened by name, and closed with the block."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers import verdict
from benchmarks.peers.agreement import Agreement, check, probes
from benchmarks.peers.jobs import Load, MixtralSize
from benchmarks.peers.ours import Measure, origin, our_engine
from benchmarks.peers.process import PeerProcess, PeersEnvironment, peer
from coordinator.config import EngineConfig
from moe_model.checkpoint import Checkpoint
from moe_model.manifest import dtype_name

NAMES = (
    verdict.OURS,
    verdict.LLAMA,
    verdict.TRANSFORMERS,
    verdict.OURS_WORKERS,
    verdict.OURS_INT8,
    verdict.ORIGIN,
)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which systems, by NAMES, and how they are set."""

    names: Sequence[str]
    llama_types: Sequence[str]
    num_workers: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Open systems in the order of their turns, the peers among them, and whether these agree."""

    systems: Mapping[str, Measure]
    peers: Mapping[str, PeerProcess]
    agreement: Mapping[str, Agreement]

    @property
    def versions(self) -> dict[str, str]:
        return {name: process.version for name, process in self.peers.items()}

    def choose_ways(self, loads: Sequence[Load]) -> None:
        """Before the rounds, so that in the rounds all are measured one right after the other."""
        for name, process in self.peers.items():
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
    size: MixtralSize,
) -> Iterator[Opened]:
    """`folder` has the peers' models. Raises PeerError, also when a peer computes something else."""
    with ExitStack() as stack:
        peers = {
            name: stack.enter_context(peer(environment, name, module, options))
            for name, module, options in _peers(choice, config, folder, size)
        }
        agreement = _agreement(peers, environment, folder, size)
        systems: dict[str, Measure] = {}
        for name in choice.names:
            for found in [key for key in peers if key.startswith(name)]:
                systems[found] = peers[found].measure
            if name == verdict.ORIGIN:
                systems[name] = origin(checkpoint, config)
            elif name.startswith(verdict.OURS):
                ours = our_engine(checkpoint, *_ours(name, choice, config), environment.threads)
                systems[name] = stack.enter_context(ours)
        yield Opened(systems, peers, agreement)


def _peers(
    choice: Choice, config: EngineConfig, folder: Path, size: MixtralSize
) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Name, module and options of each peer process."""
    if verdict.LLAMA in choice.names:
        for kind in choice.llama_types:
            options = {"model": str(folder / f"{kind}.gguf"), "vocab_size": size.vocab_size}
            yield f"{verdict.LLAMA}-{kind}", "llama_peer", options
    if verdict.TRANSFORMERS in choice.names:
        model = str(folder / "transformers")
        yield verdict.TRANSFORMERS, "transformers_peer", {"model": model, "dtype": dtype_name(config.dtype)}


def _ours(name: str, choice: Choice, config: EngineConfig) -> tuple[EngineConfig, int]:
    if name == verdict.OURS_WORKERS:
        return config, choice.num_workers
    return (replace(config, expert_dtype="int8") if name == verdict.OURS_INT8 else config), 0


def _agreement(
    peers: Mapping[str, PeerProcess], environment: PeersEnvironment, folder: Path, size: MixtralSize
) -> dict[str, Agreement]:
    if not peers:
        return {}
    options = {"model": str(folder / "transformers"), "dtype": "float32"}
    with peer(environment, "reference", "transformers_peer", options) as process:
        reference = probes(process, size.vocab_size)
    return check(peers, reference, size.vocab_size)
