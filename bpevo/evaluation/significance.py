"""Statistics of repeated trainings: intervals, paired tests on shared seeds, and the correction for many rows."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 0.05  # family-wise: the chance that a table of rules no better than the baseline has any significant row


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
    """What pairs of one seed say: mean difference, half the 95 % t-interval, and the p-value of the two-sided paired t-test."""

    pairs: Summary
    p: float


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """`values` minus `baseline`, by seed. None with fewer than two common seeds.

    Differences that are all the same leave nothing to estimate their spread from: p is then 1, also where they are not 0.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if len(seeds) < 2:
        return None
    from scipy import stats

    x, y = np.array([values[s] for s in seeds]), np.array([baseline[s] for s in seeds])
    differences = x - y
    if np.ptp(differences) <= 1e-12 * max(1.0, float(np.abs(x).max())):
        return Difference(pairs=summary(differences.tolist()), p=1.0)
    return Difference(pairs=summary(differences.tolist()), p=float(stats.ttest_rel(x, y).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): comparing them with a level bounds the chance of any false positive by it, however
    the tests depend on each other."""
    count, adjusted, running = len(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
