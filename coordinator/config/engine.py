"""The engine: what it computes in and with, and its sizes."""

import argparse
from dataclasses import dataclass
from typing import Annotated, Literal

from coordinator.config.service import OFF
from coordinator.engine.options import DEFAULT_BLOCK_SIZE
from expertmesh.commands.options import Option
from expertmesh.commands.values import mebibytes, number_of_threads, positive, positive_number, whole_number
from expertmesh.shown_text import MAX_QUOTED
from moe_model.errors import ConfigError
from moe_model.names import DtypeName, InstructionChoice, KernelChoice, RoundedForm, WeightForm

AUTO = "auto"
# How drafts are made, and the most tokens of one: a step computes them all.
NGRAM, MAX_DRAFT = "ngram:", 32
# Of every command that computes with a model, or says how it would.
DTYPE = Option("--dtype", help="of weights and activations; float32 is exact (%(default)s)")


def _micro_batches(text: str) -> int | None:
    return None if text == AUTO else int(text)


def number_or_off(text: str) -> float | None:
    """A number above 0; None for `off`. Raises ArgumentTypeError."""
    return None if text == OFF else positive_number(text)


def _drafts(text: str) -> int | None:
    if text == OFF:
        return None
    if not text.startswith(NGRAM):
        raise argparse.ArgumentTypeError(
            f"{text[:MAX_QUOTED]!r} is neither `off` nor `ngram:K`, as `ngram:4` for drafts of 4 tokens"
        )
    return whole_number(1, MAX_DRAFT)(text.removeprefix(NGRAM))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """num_threads: None for all cores that the process may use.
    block_size: positions of one block of the KV cache.
    max_gap_ms: milliseconds that prefill may make running streams wait; None for any.
    max_context: positions of the longest sequence; None for the model's own.
    kv_cache_bytes: the most; None for half of the memory that is left when the weights are loaded.
    micro_batches: parts of a step in flight where experts run in workers; None for what was measured.
    speculate: tokens that a sequence may draft for a step; None for none.
    """

    dtype: Annotated[DtypeName, DTYPE] = "float32"
    expert_dtype: Annotated[
        WeightForm,
        Option(
            "--expert-dtype",
            help="of the experts' matrices; int8 and q8 halve their memory against bfloat16, q4 takes a "
            "quarter of it; none of them is exact. mxfp4 and fp8: as the checkpoint stores them, if it does "
            "(%(default)s)",
        ),
    ] = "model"
    shared_dtype: Annotated[
        RoundedForm,
        Option(
            "--shared-dtype",
            help="of the other matrices: attention's, dense networks', the head's; as --expert-dtype has it "
            "(%(default)s)",
        ),
    ] = "model"
    expert_slices: Annotated[
        int,
        Option(
            "--expert-slices",
            parse=positive,
            metavar="S",
            help="blocks of hidden units that each expert is computed in, which workers hold one by one; "
            "with as many as there are workers, all have the same to do. Tokens depend on S, and on nothing "
            "else of where experts are (%(default)s)",
        ),
    ] = 1
    kernels: Annotated[
        KernelChoice,
        Option(
            "--kernels",
            help="what computes, native: our own C, for CPUs; torch: its operations, for any device "
            "(%(default)s: native on a CPU, where it was built)",
        ),
    ] = "auto"
    instruction_set: Annotated[
        InstructionChoice,
        Option(
            "--instruction-set",
            help="of native kernels, in the coordinator and in all workers; where their processors differ, "
            "one that all have makes the bits of experts the same (%(default)s: the best of each)",
        ),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Option(
            "--device",
            help="where the coordinator computes; workers use CPUs (%(default)s: a GPU if there is one)",
        ),
    ] = "auto"
    num_threads: Annotated[
        int | None,
        Option(
            "--threads",
            parse=number_of_threads,
            metavar="N",
            help="threads of the coordinator's kernels (all cores, as far as a CPU quota goes)",
        ),
    ] = None
    max_num_seqs: Annotated[
        int, Option("--max-batch", parse=positive, metavar="N", help="sequences at once (%(default)s)")
    ] = 64
    max_step_tokens: Annotated[
        int,
        Option(
            "--max-step-tokens",
            parse=positive,
            metavar="N",
            help="token budget of one step; longer prompts are computed in chunks (%(default)s)",
        ),
    ] = 512
    max_gap_ms: Annotated[
        float | None,
        Option(
            "--max-gap",
            parse=number_or_off,
            metavar="MS",
            help="most milliseconds between two tokens of a stream while prompts of others are computed, as "
            "far as the size of their chunks decides it; `off` for chunks as large as the budget "
            "(%(default)s)",
        ),
    ] = 50
    max_context: Annotated[
        int | None,
        Option(
            "--max-context",
            parse=positive,
            metavar="N",
            help="most tokens of a prompt and its output (as many as the model has positions)",
        ),
    ] = None
    kv_cache_bytes: Annotated[
        int | None,
        Option(
            "--kv-cache-mib",
            parse=mebibytes,
            metavar="N",
            help="most memory for keys and values, in MiB (half of what is left when the weights are loaded)",
        ),
    ] = None
    prefix_caching: Annotated[
        bool, Option("--prefix-caching", negatable=True, help="compute what prompts have in common once (on)")
    ] = True
    micro_batches: Annotated[
        int | None,
        Option(
            "--micro-batches",
            choices=(AUTO, "1", "2"),
            convert=_micro_batches,
            help="parts of a step in flight: while one is at the workers the next is in attention "
            "(auto: what is measured to be faster)",
        ),
    ] = None
    speculate: Annotated[
        int | None,
        Option(
            "--speculate",
            parse=_drafts,
            metavar="ngram:K",
            help="compute up to K more tokens of a sequence in a step: those that followed its last ones "
            "where these stood before; outputs stay the same. It is done where it is measured to be faster "
            "(off)",
        ),
    ] = None
    block_size: int = DEFAULT_BLOCK_SIZE

    def __post_init__(self) -> None:
        for name in (
            "block_size",
            "expert_slices",
            "kv_cache_bytes",
            "max_context",
            "max_num_seqs",
            "max_step_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is less than 1")
        if self.kernels == "torch" and self.instruction_set != "auto":
            raise ConfigError(f"instruction_set: {self.instruction_set} is for native kernels, not for torch")
        if self.speculate is not None and not 1 <= self.speculate <= MAX_DRAFT:
            raise ConfigError(f"speculate: {self.speculate} is not in [1, {MAX_DRAFT}]")
        if self.max_gap_ms is not None and not self.max_gap_ms > 0:
            raise ConfigError(f"max_gap_ms: {self.max_gap_ms} is not a number > 0")
