"""Requests as the product's engine has them, without text: prompts that have nothing in common."""

import numpy as np

from coordinator.engine.cache.cache_sizes import CacheSizes, Demand, sizes_for
from coordinator.engine.core.pacing import Pace
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.speculation import Speculation
from coordinator.engine.messages.request import Request, StopRules
from coordinator.server.cache_budget import SHARE_OF_MEMORY
from expert_workers.wire import DTYPES
from moe_model.families import family_of
from moe_model.sampling.params import SamplingParams
from scaling.simulation.setting import Ask, Setting

# Text as such is not simulated; a prompt's ids only decide which blocks are shared.
_GREEDY = SamplingParams(temperature=0.0)


def make_sequence(
    ask: Ask, number: int, max_seq_len: int, block_size: int, rng: np.random.Generator
) -> Sequence:
    """One that ends after `num_output` tokens."""
    prompt = ask.prompt or tuple(rng.integers(0, 1 << 30, ask.num_prompt).tolist())
    rules = StopRules(max_tokens=ask.num_output, ignore_eos=True)
    request = Request(f"r{number}", prompt, _GREEDY, rules, arrival_time=0.0)
    return Sequence(request, max_seq_len, block_size, key=number)


def make_scheduler(setting: Setting, kv_bytes: float, longest: int, num_seqs: int) -> Scheduler:
    """As `expertmesh serve` makes it. Blocks beyond what this load can fill are left out: they change
    nothing. Raises ConfigError where one sequence does not fit."""
    engine = setting.engine
    pace = None if engine.max_gap_ms is None else Pace(engine.max_gap_ms / 1e3, engine.block_size)
    speculation = None if engine.speculate is None else Speculation(engine.speculate)
    return Scheduler(
        _sizes(setting, kv_bytes, longest, num_seqs),
        engine.max_num_seqs,
        engine.max_step_tokens,
        prefix_caching=engine.prefix_caching,
        pace=pace,
        speculation=speculation,
    )


def _sizes(setting: Setting, kv_bytes: float, longest: int, num_seqs: int) -> CacheSizes:
    engine = setting.engine
    dtype = DTYPES[engine.dtype][0]
    most = min(engine.max_context or setting.config.max_seq_len, setting.config.max_seq_len)
    context = min(longest + 1, most)
    # What the product makes room for, but no more than all requests of the load fill, one after the other:
    # blocks of those that have ended may be found by later ones.
    num_contexts = min(engine.max_num_seqs * -(-most // context), num_seqs)
    demand = Demand(context, max(1, num_contexts), engine.max_step_tokens)
    spec = family_of(setting.config).cache_spec(setting.config)
    return sizes_for(spec, engine.block_size, dtype, demand, int(kv_bytes))


def usual_kv_bytes(memory_gb: float, weights_bytes: float) -> float:
    """As the product takes it: half of what is left."""
    return SHARE_OF_MEMORY * max(0.0, 1e9 * memory_gb - weights_bytes)
