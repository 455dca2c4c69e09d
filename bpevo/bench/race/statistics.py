"""What the results of a race say. Values are accuracies in %, arrays [seeds, points] in the order of FRACTIONS."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from bpevo.evaluation.significance import Difference, holm, paired

RESAMPLES = 10_000
LEVEL = 0.05


def value(fresh: Sequence[float | None]) -> float:
    """The mean accuracy in % over new seeds; one that diverged counts as 0.

    >>> value([0.5, 1.0, None, 0.5])
    50.0
    """
    return 100 * sum(a or 0.0 for a in fresh) / len(fresh)


def diverged(fresh: Sequence[float | None]) -> float:
    """The share that diverged."""
    return sum(a is None for a in fresh) / len(fresh)


def reached(fractions: Sequence[float], curve: Sequence[float], target: float) -> float:
    """The share of the budget at which a curve, linear in the logarithm of the share, first reaches the target.

    Args:
      fractions: shares of the budget, rising.
      curve: values there.
      target: what is to be reached.

    Returns:
      The smallest share where the curve begins at or above the target (it may have reached it earlier); inf where it never does.

    >>> reached([0.25, 0.5, 1.0], [10.0, 20.0, 30.0], 15.0) == 0.25 * 2**0.5
    True
    """
    if curve[0] >= target:
        return fractions[0]
    for i in range(1, len(curve)):
        if curve[i] >= target:
            part = (target - curve[i - 1]) / (curve[i] - curve[i - 1])
            return math.exp((1 - part) * math.log(fractions[i - 1]) + part * math.log(fractions[i]))
    return math.inf


@dataclasses.dataclass(frozen=True)
class Savings:
    """The share of the budget at which an arm reaches the reference's final quality, with its 95 % bootstrap interval."""

    share: float
    low: float
    high: float


def savings(fractions: Sequence[float], values: np.ndarray, reference: np.ndarray, seed: int = 0) -> Savings:
    """Savings by mean curves; seeds are drawn with replacement, the same for both.

    Args:
      fractions: shares of the budget [points].
      values: of the arm [seeds, points].
      reference: likewise, of the same seeds.
      seed: of the resampling.
    """
    count, shares = len(values), []

    def share(drawn: np.ndarray) -> float:
        # Both means by one and the same sum: the reference reaches its own end.
        return reached(fractions, values[drawn].mean(0).tolist(), float(reference[drawn].mean(0)[-1]))

    for drawn in np.random.default_rng(seed).integers(count, size=(RESAMPLES, count)):
        shares.append(share(drawn))
    # Of the sorted shares themselves: between a number and infinity nothing lies.
    low, high = np.quantile(shares, [LEVEL / 2, 1 - LEVEL / 2], method="inverted_cdf")
    return Savings(share(np.arange(count)), float(low), float(high))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm against a reference at all of the budget."""

    arm: str
    reference: str
    difference: Difference
    p: float  # that the arm is no better, one-sided, Holm-corrected over all comparisons of the data set

    @property
    def better(self) -> bool:
        return self.p < LEVEL


def comparisons(final: Mapping[str, Mapping[int, float]], references: Sequence[str]) -> list[Comparison]:
    """Every arm against every reference that is another one, paired by search seed; those without two common seeds are left out.

    Args:
      final: of each arm the values at all of the budget, by search seed.
      references: arms among them.
    """
    found = []
    for reference in references:
        for arm, values in final.items():
            difference = paired(values, final.get(reference, {}))
            if arm != reference and difference:
                found.append((arm, reference, difference))
    adjusted = holm([difference.greater for _, _, difference in found])
    return [
        Comparison(arm=arm, reference=reference, difference=difference, p=p)
        for (arm, reference, difference), p in zip(found, adjusted, strict=True)
    ]
