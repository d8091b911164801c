"""How sure a median over few rounds is, and between which two values the median of another run falls.

The model: the logarithm of a measure of cell c in round r is m_c + d_r + e_cr. d_r is what the machine did to
the whole round (rounds are interleaved, so that a drift is in all cells alike), e_cr is the cell's own noise.
The spread of d is known from as many values as there are rounds; that of e is borrowed among cells.
"""

from collections.abc import Mapping, Sequence
from math import exp, hypot, log, pi, sqrt
from statistics import median

import numpy as np
from msgspec import Struct
from scipy.optimize import brentq
from scipy.special import digamma, stdtrit, zeta
from scipy.stats import bootstrap

from scaling.prediction import Interval

# Of one median's interval by bootstrap.
CONFIDENCE = 0.95
# Of another run's median, and of a difference that is called one, as far as a cell's own noise goes: of 36
# cells at 95 % two miss by chance, and a bar of 95 % would fail every other time; at 99 % it holds.
OWN_CONFIDENCE = 0.99
# And as far as drift goes, which moves all cells at once.
SHARED_CONFIDENCE = 0.95
# Of a value: no interval is narrower, a tenth of a percent is what a table shows.
FLOOR = 1e-3
NUM_RESAMPLES = 2000
# A prior that is known this well counts as known for good.
MOST_DF = 1e6
# Less of a variance is rounding.
TINY = 1e-14


class Variance(Struct, frozen=True):
    """Of the logarithm of one run of a cell: `own` of its noise, `shared` of what moves a whole round, each
    with the degrees of freedom that it is known from."""

    own: float
    own_df: float
    shared: float
    shared_df: float


def median_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """The median over rounds, and its interval at CONFIDENCE by percentile bootstrap. Of one value the
    interval is not known: None."""
    if len(values) < 2:
        return None
    found = bootstrap(
        (np.asarray(values, dtype=float),),
        np.median,
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(np.median(values)), float(found.low), float(found.high))


def median_variance(num: int) -> float:
    """The variance of the median of `num` values of a normal distribution, in units of theirs: pi/2 over
    (num + pi/2 - 1), which is exact for one value and for many, and off by 2 % for three."""
    return (pi / 2) / (num + pi / 2 - 1)


def repeat_interval(value: float, variance: Variance, num: int, num_again: int) -> Interval:
    """Where the median of `num_again` rounds of another run is expected, when `num` rounds gave `value`
    (> 0)."""
    return _around(value, (variance, variance), (num, num_again))


def ratio_interval(one: float, other: float, variances: Sequence[Variance], nums: Sequence[int]) -> Interval:
    """Of `other` over `one`, medians (> 0) of two runs with a variance and a number of rounds each."""
    return _around(other / one, variances, nums)


def _around(value: float, variances: Sequence[Variance], nums: Sequence[int]) -> Interval:
    """For the difference of two medians' logarithms. What rounds share is not divided by their number: a
    drift is slow, and the rounds of one run have most of it in common. The two halves add as squares."""
    own = [(v.own * median_variance(num), v.own_df) for v, num in zip(variances, nums, strict=True)]
    shared = [(v.shared, v.shared_df) for v in variances]
    half = hypot(_half(own, OWN_CONFIDENCE), _half(shared, SHARED_CONFIDENCE), FLOOR)
    return Interval(value, value * exp(-half), value * exp(half))


def _half(parts: Sequence[tuple[float, float]], confidence: float) -> float:
    """Half the width of an interval by Student's t, for a sum of estimated variances; degrees of freedom by
    Satterthwaite (Biometrics Bulletin 2, 1946, 110-114)."""
    total = sum(value for value, _ in parts)
    if total <= 0:
        return 0.0
    # As shares: the square of a very small variance is 0.
    df = 1 / sum((value / total) ** 2 / df for value, df in parts)
    return float(stdtrit(df, (1 + confidence) / 2)) * sqrt(total)


def variances(values: Mapping[str, Mapping[int, float]]) -> dict[str, Variance]:
    """Of each cell, from its values (> 0) by round. A cell of one round has what the others know; empty where
    no cell has two."""
    logs = {cell: {r: log(value) for r, value in of.items()} for cell, of in values.items() if of}
    repeated = {cell: of for cell, of in logs.items() if len(of) > 1}
    if not repeated:
        return {}
    shared, effects = _round_effects(repeated)
    own = {cell: _own(of, effects, len(repeated)) for cell, of in repeated.items()}
    prior, prior_df = _prior(list(own.values()))
    floor = _pooled(list(own.values()))
    found = {}
    for cell in logs:
        value, df = own.get(cell, (prior, 1.0))
        both = df + prior_df
        # Empirical Bayes: Smyth, Stat. Appl. Genet. Mol. Biol. 3 (2004) 3.
        mixed = prior if prior_df >= MOST_DF else (df * value + prior_df * prior) / both
        # Noise of three rounds that looks small mostly is not: no cell is surer than all are on average.
        found[cell] = Variance(
            max(mixed, floor), min(both, _num_df(own)), shared, max(1.0, len(effects) - 1.0)
        )
    return found


def _round_effects(logs: Mapping[str, Mapping[int, float]]) -> tuple[float, dict[int, float]]:
    """The variance of what moves whole rounds, and by how much each round was moved. A cell alone cannot tell
    that from its noise: none."""
    by_round: dict[int, list[float]] = {}
    for of in logs.values():
        mean = sum(of.values()) / len(of)
        for number, value in of.items():
            by_round.setdefault(number, []).append(value - mean)
    if len(logs) < 2:
        return 0.0, dict.fromkeys(by_round, 0.0)
    # The median: one noisy cell must not look like a drift of all.
    effects = {number: median(of) for number, of in by_round.items()}
    return float(np.var(list(effects.values()), ddof=1)) if len(effects) > 1 else 0.0, effects


def _own(of: Mapping[int, float], effects: Mapping[int, float], num_cells: int) -> tuple[float, float]:
    """A cell's own variance and its degrees of freedom, of which cells gave some to the rounds."""
    rest = [value - effects[number] for number, value in of.items()]
    df = (len(rest) - 1) * (1 - 1 / num_cells if num_cells > 1 else 1.0)
    return float(np.var(rest)) * len(rest) / df, df


def _num_df(own: Mapping[str, tuple[float, float]]) -> float:
    return max(1.0, sum(df for _, df in own.values()))


def _prior(own: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """What cells' own variances are drawn from: a value and how many degrees of freedom it is worth; by the
    moments of their logarithms (Smyth, equations of section 6.2)."""
    pooled = _pooled(own)
    known = [(log(value), df) for value, df in own if value > TINY]
    if len(known) < 3:
        return pooled, (MOST_DF if len(own) > 1 else 0.0)
    shifted = [value - float(digamma(df / 2)) + log(df / 2) for value, df in known]
    excess = float(np.var(shifted, ddof=1)) - float(np.mean([_trigamma(df / 2) for _, df in known]))
    prior_df = _half_trigamma_inverse(excess)
    if prior_df >= MOST_DF:
        return pooled, MOST_DF
    return exp(float(np.mean(shifted)) + float(digamma(prior_df / 2)) - log(prior_df / 2)), prior_df


def _pooled(own: Sequence[tuple[float, float]]) -> float:
    return sum(value * df for value, df in own) / sum(df for _, df in own)


def _half_trigamma_inverse(value: float) -> float:
    """The df at which trigamma(df / 2) is `value`; between 1/2 and MOST_DF."""
    lowest, highest = 0.5, MOST_DF
    if value <= _trigamma(highest / 2):
        return highest
    if value >= _trigamma(lowest / 2):
        return lowest
    return float(brentq(lambda df: _trigamma(df / 2) - value, lowest, highest, rtol=1e-6))


def _trigamma(x: float) -> float:
    return float(zeta(2.0, x))
