"""One request of the completions or chat route: what it asks, and how its answer is written."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coordinator.api.http.parameters import Names
from expertmesh.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """OpenAI's stream_options, and vLLM's running usage."""

    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False


@dataclass(frozen=True, slots=True)
class Wants:
    """What of an answer is shown."""

    logprobs: int | None = None
    echo: bool = False
    token_ids: bool = False
    prompt_logprobs: bool = False
    # Calls of tools are shown as OpenAI's first form had them.
    old_functions: bool = False
    # A prompt as text, for echo: made when it is shown, for by then it is known to be valid.
    prompt_text: Callable[[int], str] = lambda prompt: ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed request. `num_sequences` is per prompt."""

    messages: Sequence[pb.GenerateRequest]
    num_sequences: int
    streaming: StreamOptions
    wants: Wants
    names: Names


class Shape(Protocol):
    """Completions or chat."""

    kind: str
    chunk_kind: str
    id_prefix: str

    def choice(
        self, index: int, prompt: int, output: pb.SequenceOutput, info: pb.PromptInfo
    ) -> dict[str, Any]:
        """A whole choice."""

    def first(self, index: int, prompt: int, info: pb.PromptInfo) -> dict[str, Any] | None:
        """The choice of the first chunk, where there is one before any text."""

    def delta(self, index: int, delta: pb.SequenceDelta) -> dict[str, Any]:
        """The choice of a chunk."""

    def finished(self, index: int, finished: pb.SequenceFinished) -> dict[str, Any]:
        """The choice of the last chunk of a sequence."""


def warned(warnings: Sequence[str]) -> dict[str, list[str]]:
    """The member of an answer that says what of the request was passed over; none where nothing was."""
    return {"warnings": list(warnings)} if warnings else {}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is the same in all chunks of an answer, or around its choices."""

    id: str
    kind: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
            "system_fingerprint": None,
            **more,
        }
