"""The requests of a load, whatever sends them: equal for equal loads, seeds and models."""

from msgspec import structs

from moe_model.errors import ConfigError
from scaling.cell import Load
from scaling.loads.base import Target, num_requests
from scaling.workloads.arrivals import poisson, scaled
from scaling.workloads.lengths import lengths
from scaling.workloads.prompts import with_prompts
from scaling.workloads.request import Sized, Workload, cut, fits
from scaling.workloads.traces.table import sized_of

# A load does not take longer: a year.
MOST_SECONDS = 366 * 86_400.0


def workload(load: Load, target: Target, seed: int) -> Workload:
    """Raises ConfigError for a trace that cannot be read, and for lengths that the model's context does not
    hold; a trace's are cut to it, which the notes say."""
    if load.concurrency is None and load.rate is None and load.trace is None:
        raise ConfigError("load: say one of concurrency and rate")
    if load.trace is None:
        sized, notes = _of_lengths(load, target, seed)
    else:
        sized, notes = sized_of(load, target, seed)
    due = _due(load, sized, seed)
    timed = [structs.replace(each, due_s=at) for each, at in zip(sized, due, strict=True)]
    return Workload(tuple(with_prompts(timed, seed, target.vocab_size)), notes)


def _of_lengths(load: Load, target: Target, seed: int) -> tuple[list[Sized], tuple[str, ...]]:
    num = num_requests(load)
    if load.lengths == "exact":
        fits(load.prompt_tokens, load.output_tokens, target.max_seq_len)
    prompts = lengths(load.lengths, load.prompt_tokens, load.length_spread, num, seed, "prompt")
    outputs = lengths(load.lengths, load.output_tokens, load.length_spread, num, seed, "output")
    sized = [Sized(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
    sized, num_cut = cut(sized, target.max_seq_len)
    said = f"{num_cut} of {num} requests were cut to a context of {target.max_seq_len} tokens"
    return sized, (said,) if num_cut else ()


def _due(load: Load, sized: list[Sized], seed: int) -> list[float] | list[None]:
    if load.concurrency is not None:
        return [None] * len(sized)
    times = [each.due_s for each in sized if each.due_s is not None]
    if len(times) == len(sized):
        due = scaled(times, load.rate)
        if due[-1] > MOST_SECONDS:
            raise ConfigError(f"{load.trace}: its last request is due {due[-1]:.3g} s after its first")
        return due
    if load.rate is None:
        raise ConfigError(f"load: {load.trace} has no times: say one of concurrency and rate")
    return poisson(load.rate, len(sized), seed)
