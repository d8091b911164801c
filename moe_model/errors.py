"""The exception tree of the whole product; its trunk is the client's, in expertmesh/errors.py.

    ExpertMeshError
    ├── UserError              what a caller can cause and mend
    │   ├── ConfigError          a model configuration or an option
    │   ├── NoWorkersError       a change of expert workers where there are none
    │   ├── BoundWorkersError    a number of expert workers where that of the machines counts
    │   ├── CheckpointError      a file or folder we were asked to read or write
    │   └── TokenizerError       a tokenizer file, or text it cannot take
    │       └── TokenizerLimitError  a text that takes the tokenizer too long or too much memory
    └── WorldError             what the world causes
        ├── ClusterError         Ray cannot be reached or cannot place our workers
        ├── WorkerStartError     an expert worker could not load what it must hold
        ├── NumericError         the model produced numbers that are none
        ├── FencedError          another coordinator has taken over the expert workers
        ├── ReplyError           an expert worker answered with something that is no result
        ├── HaltedError          it was told to stop before it was done
        ├── BusyError            what it needs is busy with others, and did not come free in time
        ├── NoProcessError       the machine starts no process for it
        └── ExpertsLostError     experts that a step needs have no live holder

Messages are one line and name the thing. The command line prints them as they are.
"""

from expertmesh.errors import ConfigError, ExpertMeshError, UserError

__all__ = [
    "BoundWorkersError",
    "BusyError",
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "ExpertMeshError",
    "ExpertsLostError",
    "FencedError",
    "HaltedError",
    "NoProcessError",
    "NoWorkersError",
    "NumericError",
    "ReplyError",
    "TokenizerError",
    "TokenizerLimitError",
    "UserError",
    "WorkerStartError",
    "WorldError",
]


class NoWorkersError(UserError):
    """All experts are in the coordinator's process: there are no workers to change."""


class BoundWorkersError(UserError):
    """The expert workers follow the machines of the cluster: their number is not to be told."""


class CheckpointError(UserError):
    """A checkpoint or a source of one is missing, broken, hostile or in the way."""


class TokenizerError(UserError):
    """A tokenizer file is missing or not usable."""


class TokenizerLimitError(TokenizerError):
    """To encode a text takes more time or memory than it may. Names the part of the tokenizer that does."""


class WorldError(ExpertMeshError):
    """Something outside the program failed."""


class ClusterError(WorldError):
    """The Ray cluster cannot be reached or cannot place our workers."""


class WorkerStartError(WorldError):
    """An expert worker could not load its experts."""


class NumericError(WorldError):
    """The model produced numbers that are none: NaN or infinite logits."""


class FencedError(WorldError):
    """Another coordinator uses the expert workers, or has taken them over."""


class ReplyError(WorldError):
    """An expert worker's reply failed validation; it is never used as data."""


class HaltedError(WorldError):
    """What was under way ends, for it was told to stop."""


class NoProcessError(WorldError):
    """A process cannot be started."""


class BusyError(WorldError):
    """All processes or threads for it are at work for others, and none came free in time."""


class ExpertsLostError(WorldError):
    """No live worker holds an expert that a step needs.

    `ranks` are the workers that were asked and did not answer in time.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks
