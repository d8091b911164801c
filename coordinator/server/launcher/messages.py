"""What the launcher and its processes say to each other: plain data, a line of JSON each. Light."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from coordinator.config.serve import ServeConfig
from moe_model.errors import WorldError


@dataclass(frozen=True, slots=True)
class Begin:
    """The first to each engine and front: what it is told to be. `folder` is the server's own, closed to
    others, `instance_id` its name among all there have been; `number` is a front's, from 0, which who takes
    its place has too; `is_again`: the place of one that has died is taken."""

    config: ServeConfig
    folder: Path
    instance_id: str = ""
    number: int = 0
    is_again: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """From each: its libraries are loaded. One that has not said so has started nothing and holds nothing."""


@dataclass(frozen=True, slots=True)
class UseRay:
    """To an engine that needs a Ray of our own: where it is, and the variables that let it in."""

    address: str
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class ModelKnown:
    """From an engine: the facts of its model are in the folder, the checkpoint is at that place. To fronts:
    the former."""

    checkpoint: str


@dataclass(frozen=True, slots=True)
class EngineReady:
    """From an engine that listens and has made a token; to fronts, to connect to it."""

    device: str = ""
    num_workers: int = 0
    num_replicas: int = 0
    kv_capacity_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FrontReady:
    """From a front that serves."""

    max_context: int


@dataclass(frozen=True, slots=True)
class RayReady:
    """From the keeper of a Ray of our own."""

    address: str
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Phase:
    """What a start is at."""

    name: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the phase is, in bytes."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Halt:
    """To an engine: a signal was heard, so every change of experts or workers ends."""


@dataclass(frozen=True, slots=True)
class Drain:
    """To fronts: refuse new calls after `grace` seconds, and wait for the others, `timeout` seconds."""

    grace: float
    timeout: float


@dataclass(frozen=True, slots=True)
class Drained:
    """From a front: none of its calls is left, or what was left has been ended."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The end, in order, and at once."""


@dataclass(frozen=True, slots=True)
class Failed:
    """From any: it ends, and why; another in its place would fare no better."""

    why: str


Message = (
    Begin
    | Begun
    | UseRay
    | ModelKnown
    | EngineReady
    | FrontReady
    | RayReady
    | Phase
    | Progress
    | Halt
    | Drain
    | Drained
    | Stop
    | Failed
)
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in Message.__args__}


class ControlError(WorldError):
    """A line that is none of ours."""


def encode(message: Message) -> bytes:
    """One line, its end included."""
    return msgspec.json.encode((type(message).__name__, message), enc_hook=_plain) + b"\n"


def decode(line: bytes) -> Message:
    """Raises ControlError."""
    try:
        name, body = msgspec.json.decode(line, type=tuple[str, msgspec.Raw])
        message: Message = msgspec.json.decode(body, type=_KINDS[name], dec_hook=_typed)
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise ControlError(f"a control line that is none: {error}"[:200]) from None
    return message


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} is no part of a message")


def _typed(kind: type, value: Any) -> object:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} is no part of a message")
