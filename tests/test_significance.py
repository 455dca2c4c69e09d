"""Statistics of repeated trainings, against SciPy and numbers worked out by hand, and their error rate on noise."""

import math

import numpy as np
import pytest
from scipy import stats

from bpevo.evaluation.significance import LEVEL, POWER, Summary, detectable, holm, holm_levels, paired, summary


def test_a_summary_equals_numbers_worked_out_by_hand():
    s = summary([80.0, 82.0, 84.0, 86.0])
    assert (s.n, s.mean) == (4, 83.0) and s.deviation == pytest.approx(math.sqrt(20 / 3))
    assert s.margin == pytest.approx(3.182446 * math.sqrt(20 / 3) / 2, rel=1e-6)  # t of 3 degrees of freedom at 97.5 %
    low, high = stats.t.interval(0.95, 3, s.mean, stats.sem([80.0, 82.0, 84.0, 86.0]))
    assert (s.mean - s.margin, s.mean + s.margin) == pytest.approx((low, high))
    one = summary([5.0])
    assert (one.n, one.mean) == (1, 5.0) and math.isnan(one.deviation) and math.isnan(one.margin)
    with pytest.raises(ValueError, match="at least one"):
        summary([])


def test_pairs_are_joined_by_seed_and_tested_as_scipy_does():
    values, baseline = {3: 80.0, 1: 70.0, 2: 75.5, 9: 1.0}, {1: 69.0, 2: 74.0, 3: 79.5, 8: 2.0}
    d = paired(values, baseline)
    assert (d.pairs.n, d.pairs.mean) == (3, 1.0)
    two_sided = stats.ttest_rel([70, 75.5, 80], [69, 74, 79.5]).pvalue
    assert (d.greater, d.less) == (pytest.approx(two_sided / 2), pytest.approx(1 - two_sided / 2))
    assert paired({1: 1.0}, {1: 2.0, 2: 3.0}) is None


def test_differences_without_spread_are_never_significant():
    same = {1: 70.0, 2: 80.0}
    for shift in (0.0, 5.0):
        d = paired({k: v + shift for k, v in same.items()}, same)
        assert d.greater == d.less == 1.0


def test_accuracies_in_float32_have_no_spread_of_their_own():
    """351, 349 and 352 of 360 examples against one less each, as they are stored: 100 times the quotient in float32."""

    def stored(*counts: int) -> dict[int, float]:
        return {i: 100 * float(np.float32(count) / np.float32(360)) for i, count in enumerate(counts)}

    x, y = stored(351, 349, 352), stored(350, 348, 351)
    assert len({x[i] - y[i] for i in x}) > 1
    d = paired(x, y)
    assert d.greater == d.less == 1.0 and d.pairs.mean == pytest.approx(100 / 360, rel=1e-4)
    one_of_many = paired({1: 95.0001, 2: 95.0, 3: 95.0}, {1: 95.0, 2: 95.0, 3: 95.0})  # an example of a million
    assert one_of_many.greater < 0.5


def test_holm_equals_the_published_step_down():
    # Holm 1979: smallest times m, next times m - 1, …, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_levels_of_holm_reject_what_its_adjusted_p_values_reject():
    assert holm_levels([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.05 / 3, 0.05, 0.05 / 2, 0.05 / 4])
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.uniform(0, 0.1, 5).tolist()
        order = np.argsort(p)
        passed = np.array(p)[order] < np.array(holm_levels(p))[order]  # the first that fails ends it
        rejected = int(np.argmin(passed)) if not passed.all() else 5
        assert sum(a < LEVEL for a in holm(p)) == rejected


@pytest.mark.parametrize("n, level", [(3, 0.05), (5, 0.05), (10, 0.05 / 20), (10, 0.05), (60, 0.05)])
def test_the_detectable_difference_is_found_in_eight_of_ten_simulated_tables(n, level):
    """Differences of 0.7 points' deviation about exactly that mean; the t-test knows neither."""
    least = detectable(Summary(n=n, mean=-3.0, deviation=0.7, margin=1.0), level)
    rng = np.random.default_rng(0)
    differences = rng.normal(least, 0.7, (20_000, n))
    found = stats.ttest_1samp(differences, 0, axis=1, alternative="greater").pvalue < level
    assert found.mean() == pytest.approx(POWER, abs=3 * math.sqrt(POWER * (1 - POWER) / 20_000))


def test_the_detectable_difference_approaches_the_normal_formula_and_needs_a_spread():
    """(z of 95 % + z of 80 %) s/√n for many pairs."""
    many = detectable(Summary(n=100_000, mean=0.0, deviation=2.0, margin=0.0), 0.05)
    assert many == pytest.approx((1.644854 + 0.841621) * 2 / math.sqrt(100_000), rel=1e-4)
    assert detectable(summary([1.0, 1.0, 1.0]), 0.05) is None and detectable(summary([1.0]), 0.05) is None


def test_tables_of_rules_that_are_all_backprop_have_a_winner_at_most_at_the_stated_rate():
    """Accuracies with a seed effect that all rows share and noise of their own, rounded to whole test examples."""
    rng, families, rows, repeats, examples = np.random.default_rng(0), 400, 12, 10, 360
    alarms = 0
    for _ in range(families):
        seed = rng.normal(0.85, 0.02, repeats)
        accuracies = (
            np.round(np.clip(seed + rng.normal(0, 0.01, (rows + 1, repeats)), 0, 1) * examples) / examples * 100
        )
        table = [dict(enumerate(row)) for row in accuracies]
        alarms += min(holm([paired(row, table[0]).greater for row in table[1:]])) < LEVEL
    # All rows share the baseline's noise, so the rate lies below the level; three standard errors above it is a fault.
    assert alarms / families < LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / families)
    assert alarms > 0  # the test is alive


def test_a_real_difference_is_found():
    rng = np.random.default_rng(1)
    seed = rng.normal(85, 2, 10)
    baseline = dict(enumerate(seed + rng.normal(0, 0.5, 10)))
    better = dict(enumerate(seed + 3 + rng.normal(0, 0.5, 10)))
    noise = [dict(enumerate(seed + rng.normal(0, 0.5, 10))) for _ in range(10)]
    adjusted = holm([paired(row, baseline).greater for row in (better, *noise)])
    assert adjusted[0] < LEVEL and min(adjusted[1:]) > LEVEL
