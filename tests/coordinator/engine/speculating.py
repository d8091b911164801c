"""Engines with drafts and without over the same model, and all that they say of a sequence but its times."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.forcing import Forcing
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.overlap import Overlap
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.speculation import Speculation
from coordinator.engine.core.step import Step
from coordinator.engine.core.step_result import StepResult
from coordinator.engine.messages.output import FinishReason, Stop, TokenLogprobs
from coordinator.engine.messages.records import StepRecord
from coordinator.engine.recording.recorder import RoutingRecorder
from coordinator.server import build_engine
from moe_model import ModelConfig
from moe_model.families import family_of
from moe_model.kernels.base import Kernels
from tests.cache_sizes import sizes_of
from tests.models import Collected, random_model


@dataclass(frozen=True)
class Sizes:
    """Of an engine. `fails`: every third step is computed and then fails, as if an answer had been lost."""

    num_blocks: int = 40
    max_num_seqs: int = 5
    max_step_tokens: int = 64
    num_parts: int | None = None
    fails: bool = False


@dataclass
class Counted:
    """An observer: drafted and accepted tokens of all steps."""

    num_drafted: int = 0
    num_accepted: int = 0

    def step(self, record: StepRecord) -> None:
        self.num_drafted += record.num_draft_tokens
        self.num_accepted += record.num_accepted_tokens


class Unreliable(ModelRunner):
    """Every third step is lost at its end."""

    num_runs = 0

    def run(self, step: Step) -> StepResult:
        result = super().run(step)
        self.num_runs += 1
        if self.num_runs % 3 == 0 and not step.is_one:
            raise RuntimeError("lost at the end")
        return result


class Restless(Speculation):
    """Drafts after failures as well."""

    def failed(self) -> None:
        """Tests want to see what becomes of drafts there."""


def always_draft(patch: pytest.MonkeyPatch) -> None:
    """Engines of servers that may draft do so in all their steps, whatever they measure."""
    patch.setattr(build_engine, "Speculation", partial(Restless, is_measured=False))


class DrawnTogether(NamedTuple):
    """Tokens of one sequence and step, of which those up to its end are taken, and what ended it."""

    num_drawn: int
    num_taken: int
    stop: Stop | None


def watch_drawn(patch: pytest.MonkeyPatch) -> list[DrawnTogether]:
    """Grows with each draft that was right about something."""
    found: list[DrawnTogether] = []
    append_all = Sequence.append_all

    def watched(self: Sequence, token_ids: Iterable[int]) -> tuple[int, bool]:
        token_ids = tuple(token_ids)
        num_more, slid = append_all(self, token_ids)
        found.append(DrawnTogether(len(token_ids), 1 + num_more, self.finish_reason()[1]))
        return num_more, slid

    patch.setattr(Sequence, "append_all", watched)
    return found


def engine_with(
    most: int | None,
    config: ModelConfig,
    kernels: Kernels,
    sizes: Sizes = Sizes(),
    counted: Counted | None = None,
    recorder: RoutingRecorder | None = None,
    forcing: Forcing | None = None,
) -> Engine:
    """Drafts of up to `most` tokens, always; None: none."""
    blocks = sizes_of(config, sizes.num_blocks, 4, sizes.max_num_seqs, sizes.max_step_tokens)
    cache = KVCache(family_of(config).cache_spec(config), blocks, layout=kernels.cache_layout)
    for layer in range(config.n_layers):
        for part in cache.layer(layer):
            # What is read without having been written shows.
            part[1:] = float("nan")
    speculation = None if most is None else Restless(most, is_measured=False)
    scheduler = Scheduler(blocks, sizes.max_num_seqs, sizes.max_step_tokens, speculation=speculation)
    overlap = None if sizes.num_parts is None else Overlap(sizes.num_parts)
    kind = Unreliable if sizes.fails else ModelRunner
    runner = kind(
        *(random_model(config, kernels=kernels), cache, attention_plan(kernels), overlap),
        is_recorded=None if recorder is None else lambda: recorder.is_on,
        forcing=forcing,
    )
    return Engine(scheduler, runner, config.max_seq_len, observer=counted, recorder=recorder)


@dataclass(frozen=True)
class Said:
    """Of one sequence."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs]
    routed: dict[int, list[list[int]]]
    finish_reason: FinishReason | None
    stop: Stop | None
    error: str | None = field(default=None)

    @classmethod
    def of(cls, found: Collected) -> "Said":
        assert found.last is not None
        prompts = [output.prompt for output in found.outputs if output.prompt is not None]
        traces = [trace for prompt in prompts for trace in prompt.routed_experts]
        traces += [trace for output in found.outputs for trace in output.routed_experts]
        routed: dict[int, list[list[int]]] = {}
        for trace in traces:
            for position, ids_LK in enumerate(np.asarray(trace.ids_TLK).tolist(), trace.first_position):
                assert position not in routed, "told twice"
                routed[position] = ids_LK
        if found.last.error is not None:
            # What it was told of its prompt before hangs on how steps cut it, which others' drafts move.
            prompts, routed = [], {}
        return cls(
            found.token_ids,
            [each for output in found.outputs for each in output.logprobs],
            [each for prompt in prompts for each in prompt.logprobs],
            routed,
            found.last.finish_reason,
            found.last.stop,
            None if found.last.error is None else str(found.last.error),
        )
