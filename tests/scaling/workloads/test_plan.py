"""Workloads: equal for equal seeds, of exact lengths, due when they should be."""

import itertools
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_model.errors import ConfigError
from scaling.cell import Load
from scaling.loads.base import Target
from scaling.workloads.arrivals import poisson, scaled
from scaling.workloads.lengths import MOST, Lengths, lengths
from scaling.workloads.plan import workload
from scaling.workloads.prompts import FIRST_ID, prompt, with_prompts
from scaling.workloads.request import Sized, cut

TARGET = Target("127.0.0.1:1", "127.0.0.1:2", "m", vocab_size=100, max_seq_len=64)


@given(seed=st.integers(0, 1 << 31), concurrency=st.integers(1, 9))
def test_lengths_are_exact_and_tokens_are_in_the_vocabulary(seed: int, concurrency: int) -> None:
    load = Load(concurrency=concurrency, num_requests=5, prompt_tokens=7, output_tokens=3)
    found = workload(load, TARGET, seed)
    assert found == workload(load, TARGET, seed)
    assert len(found.requests) == 5
    for request in found.requests:
        assert (len(request.prompt), request.num_output, request.due_s) == (7, 3, None)
        assert all(FIRST_ID <= token < 100 for token in request.prompt)


def test_prompts_share_no_beginning() -> None:
    found = [prompt(seed, index, 16, 4096) for seed in range(3) for index in range(30)]
    assert len({tokens[:4] for tokens in found}) == len(found)


@given(
    kind=st.sampled_from(["exact", "uniform", "lognormal"]),
    mean=st.integers(1, 1000),
    spread=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_lengths_are_within_their_limits(kind: Lengths, mean: int, spread: float, seed: int) -> None:
    found = lengths(kind, mean, spread, 50, seed, "prompt")
    assert len(found) == 50
    assert all(1 <= length <= MOST * mean for length in found)
    if kind == "uniform":
        assert all(mean * (1 - spread) - 1e-6 <= length <= max(1, mean * (1 + spread)) for length in found)


@pytest.mark.parametrize("kind", ["uniform", "lognormal"])
def test_lengths_have_the_mean_that_was_asked_for(kind: Lengths) -> None:
    found = lengths(kind, 500, 0.5, 4000, 1, "prompt")
    assert statistics.mean(found) == pytest.approx(500, rel=0.05)
    assert statistics.stdev(found) > 50
    assert found != lengths(kind, 500, 0.5, 4000, 1, "output")


def test_arrivals_are_a_poisson_process() -> None:
    due = poisson(50.0, 5000, seed=2)
    gaps = [after - before for before, after in itertools.pairwise(due)]
    assert due[0] == 0
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.1)


@given(st.lists(st.floats(0, 1e6), min_size=2), st.floats(0.01, 1000))
def test_a_trace_is_stretched_to_a_rate(times: list[float], rate: float) -> None:
    due = scaled(sorted(times), rate)
    assert due[0] == 0
    assert due == sorted(due)
    if max(times) > min(times):
        assert due[-1] == pytest.approx((len(times) - 1) / rate)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1), st.integers(2, 200))
def test_what_is_cut_fits(sizes: list[tuple[int, int]], context: int) -> None:
    found, num_cut = cut([Sized(*size) for size in sizes], context)
    for (prompt_size, output_size), each in zip(sizes, found, strict=True):
        assert each.num_prompt >= 1
        assert each.num_output >= 1
        assert each.num_prompt + each.num_output <= context
        if prompt_size and output_size and prompt_size + output_size <= context:
            assert (each.num_prompt, each.num_output) == (prompt_size, output_size)
    assert num_cut == sum(
        each.num_prompt < size[0] or each.num_output < size[1]
        for size, each in zip(sizes, found, strict=True)
    )


def test_equal_blocks_are_equal_tokens() -> None:
    sized = [
        Sized(20, 1, blocks=(7, 8), block_tokens=16),
        Sized(40, 1, blocks=(7, 9, 10), block_tokens=16),
        Sized(12, 1, blocks=(7,), block_tokens=16),
        Sized(40, 1, blocks=(7, 9, 11), block_tokens=16),
    ]
    first, second, third, fourth = (each.prompt for each in with_prompts(sized, 0, 1000))
    assert [len(each) for each in (first, second, third, fourth)] == [20, 40, 12, 40]
    assert first[:16] == second[:16]
    assert first[:12] == third
    assert first[16:] != second[16:20]
    assert second[:32] == fourth[:32]
    assert second[32:] != fourth[32:]


def test_a_load_without_how_many_and_when_is_refused() -> None:
    with pytest.raises(ConfigError, match="say one of concurrency and rate"):
        workload(Load(), TARGET, 0)


def test_what_is_cut_of_drawn_lengths_is_said() -> None:
    load = Load(concurrency=1, num_requests=50, prompt_tokens=50, output_tokens=10, lengths="lognormal")
    assert workload(load, TARGET, 0).notes[0].endswith("of 50 requests were cut to a context of 64 tokens")


def test_a_trace_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    load = Load(trace=str(tmp_path / "none"), trace_format="azure")
    with pytest.raises(ConfigError, match="none: No such file"):
        workload(load, TARGET, 0)
