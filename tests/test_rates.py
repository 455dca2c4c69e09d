"""The grid of learning rates: it grows until the best is inside, and ends."""

import math

import hypothesis
from hypothesis import strategies as st

from bpevo.evolution.rates import MOST_STEPS, at_edge, best_rate, next_rates


def grown(initial, accuracy, nothing=None):
    """All that is tried where `accuracy(rate)` comes out, and the number of rounds."""
    tried, rounds = {}, 0
    while rates := next_rates(initial, tried, nothing):
        assert not set(rates) & tried.keys()
        tried |= {rate: [accuracy(rate)] for rate in rates}
        rounds += 1
    return tried, rounds


def test_a_grid_grows_until_the_best_is_inside():
    tried, _ = grown([0.05], lambda rate: 1 - abs(math.log2(rate / 0.8)) / 10)
    assert sorted(tried) == [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
    assert best_rate(tried) == 0.8 and not at_edge([0.05], tried)


def test_growth_ends_after_six_steps_at_an_edge_that_is_called_so():
    tried, _ = grown([0.1, 0.2], lambda rate: rate / 100)
    assert max(tried) == 0.2 * 2**6 and min(tried) == 0.1
    assert at_edge([0.1, 0.2], tried)


def test_a_plateau_ends_after_two_steps_and_is_no_edge():
    tried, _ = grown([0.1, 0.2], lambda rate: 0.1)
    assert sorted(tried) == [0.1, 0.2, 0.4, 0.8]
    assert best_rate(tried) == 0.8 and not at_edge([0.1, 0.2], tried)


def flat_above(limit: float, low: float = 0.9):
    return lambda rate: 0.1 if rate > limit else low - abs(math.log2(rate / limit)) / 10


def test_a_plateau_on_which_nothing_is_learned_has_what_lies_below_it_tried():
    tried, _ = grown([0.1, 0.4], flat_above(0.03))
    assert best_rate(tried) == 1.6 and min(tried) == 0.1  # whoever does not know what nothing is
    tried, _ = grown([0.1, 0.4], flat_above(0.03), nothing=0.1)
    assert best_rate(tried) == 0.025 and sorted(tried)[:3] == [0.0125, 0.025, 0.05]
    assert not at_edge([0.1, 0.4], tried)
    never, _ = grown([0.1], lambda rate: 0.1, nothing=0.2)
    assert sorted(never) == [0.1 / 2**i for i in range(6, 0, -1)] + [0.1, 0.2, 0.4]
    learns, _ = grown([0.1], lambda rate: 0.1, nothing=0.09)
    assert min(learns) == 0.05


def test_growth_ends_where_all_seeds_diverge():
    tried, _ = grown([0.1, 0.2], lambda rate: None if rate > 0.2 else rate)
    assert sorted(tried) == [0.1, 0.2, 0.4] and best_rate(tried) == 0.2 and not at_edge([0.1, 0.2], tried)


def test_where_every_rate_diverges_lower_ones_are_tried():
    tried, _ = grown([0.1, 0.2], lambda rate: None if rate > 0.03 else rate)
    assert sorted(tried) == [0.0125, 0.025, 0.05, 0.1, 0.2] and best_rate(tried) == 0.025
    tried, _ = grown([0.1, 0.2], lambda rate: None)
    assert min(tried) == 0.1 / 2**6 and len(tried) == 2 + 6 and best_rate(tried) is None and at_edge([0.1, 0.2], tried)


def test_one_rate_is_no_tuning():
    assert at_edge([0.1], {0.1: [0.9]}) and best_rate({0.1: [0.9]}) == 0.1 and best_rate({}) is None


def test_a_seed_that_diverges_counts_as_0_and_ties_go_to_the_higher_rate():
    assert best_rate({0.1: [0.6, 0.6], 0.2: [1.0, None]}) == 0.1
    assert best_rate({0.1: [0.5], 0.2: [0.5]}) == 0.2
    assert best_rate({0.1: [0.0], 0.2: [None]}) == 0.1  # nothing right is better than no number


@hypothesis.given(
    st.lists(st.sampled_from([0.01, 0.03, 0.1, 0.5]), min_size=1, max_size=4, unique=True),
    st.lists(st.one_of(st.none(), st.sampled_from([0.1, 0.3, 0.5])), min_size=20, max_size=20),
)
def test_growth_always_ends_with_the_best_inside_or_an_edge_that_is_said(initial, values):
    memory = {}

    def accuracy(rate):
        return memory.setdefault(rate, values[len(memory) % len(values)])

    tried, rounds = grown(initial, accuracy)
    assert rounds <= 1 + 2 * MOST_STEPS and len(tried) <= len(initial) + 2 * MOST_STEPS
    best = best_rate(tried)
    inside = best is not None and min(tried) < best < max(tried)
    assert not (inside and at_edge(initial, tried))


@hypothesis.given(
    st.lists(st.sampled_from([0.05, 0.1, 0.2, 0.4]), min_size=1, max_size=3, unique=True),
    st.dictionaries(st.integers(-12, 6), st.none() | st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=12),
    st.randoms(use_true_random=False),
)
def test_neither_the_order_of_a_round_nor_an_interruption_in_it_changes_the_grid(initial, outcomes, chosen):
    def accuracy(rate):
        return outcomes.get(round(math.log2(rate)), 0.05)

    whole, _ = grown(initial, accuracy)
    tried = {}
    while rates := next_rates(initial, tried):  # asked anew after each single outcome, as a run that is killed asks
        rate = chosen.choice(rates)
        tried[rate] = [accuracy(rate)]
    assert tried == whole
