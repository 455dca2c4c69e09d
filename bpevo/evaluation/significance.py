"""Statistics of repeated trainings: intervals, paired tests on shared seeds, and the correction for many rows."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 0.05  # family-wise: the chance that a table of rules none of which is better has any significant row
POWER = 0.8  # with which a test finds the difference that is called detectable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What n values say: `deviation` is the sample standard deviation, `margin` half the 95 % t-interval. nan below n = 2."""

    n: int
    mean: float
    deviation: float
    margin: float


def summary(values: Sequence[float], level: float = LEVEL) -> Summary:
    """Mean, deviation and interval of `values`. Raises ValueError without any."""
    n = len(values)
    if not n:
        raise ValueError("a summary needs at least one value")
    if n == 1:
        return Summary(n=1, mean=float(values[0]), deviation=math.nan, margin=math.nan)
    from scipy import stats  # here, as it takes a third of a command's start

    deviation = float(np.std(values, ddof=1))
    margin = float(stats.t.ppf(1 - level / 2, n - 1)) * deviation / math.sqrt(n)
    return Summary(n=n, mean=float(np.mean(values)), deviation=deviation, margin=margin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """What pairs of one seed say: mean difference, half the 95 % t-interval, and the p-values of the one-sided paired t-tests."""

    pairs: Summary
    greater: float  # that the mean lies above 0 by chance
    less: float


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """`values` minus `baseline`, by seed. None with fewer than two common seeds.

    Differences that are all the same leave nothing to estimate their spread from: p is then 1, also where they are not 0.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if len(seeds) < 2:
        return None
    from scipy import stats

    x, y = np.array([values[s] for s in seeds]), np.array([baseline[s] for s in seeds])
    pairs = summary((x - y).tolist())
    if constant(x - y, scale=float(np.abs(x).max())):
        return Difference(pairs=pairs, greater=1.0, less=1.0)
    greater, less = (float(stats.ttest_rel(x, y, alternative=side).pvalue) for side in ("greater", "less"))
    return Difference(pairs=pairs, greater=greater, less=less)


def constant(differences: Sequence[float] | np.ndarray, scale: float) -> bool:
    """Whether differences of values up to `scale` are all the same but for the rounding of float32, in which accuracies come."""
    return float(np.ptp(differences)) <= 1e-6 * max(1.0, scale)


def detectable(pairs: Summary, level: float) -> float | None:
    """The least true difference that a one-sided paired t-test with as many pairs finds at `level` with power POWER.

    Args:
      pairs: of the differences; their deviation is taken for the true one.
      level: of the test.

    Returns:
      None where the differences have no spread.
    """
    if not pairs.deviation > 0:
        return None
    from scipy import optimize, stats

    free = pairs.n - 1
    critical = float(stats.t.ppf(1 - level, free))

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(critical, free, shift)) - POWER

    high = critical + 1
    while lacking(high) < 0:
        high *= 2
    return float(optimize.brentq(lacking, 0, high)) * pairs.deviation / math.sqrt(pairs.n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): comparing them with a level bounds the chance of any false positive by it, however
    the tests depend on each other."""
    count, adjusted, running = len(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def holm_levels(p_values: Sequence[float], level: float = LEVEL) -> list[float]:
    """The level that Holm's procedure holds against each p-value: the smallest meets the strictest."""
    levels = [level] * len(p_values)
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        levels[i] = level / (len(p_values) - rank)
    return levels
