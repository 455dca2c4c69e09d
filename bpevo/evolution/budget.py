"""What a budget affords: equations, how many of them are bred, and the settings that follow from it.

Letters: E equations, N the elite's size, L the lag. Proposal n may be bred once there are N proposals (none, with initial
equations: they are parents before they have results) and the first result has come in, at n = L.
"""

import math

from bpevo.evolution.controllers import CONFIRM_EVERY
from bpevo.evolution.proposals import Rung

LEAST_ELITE, MOST_ELITE = 10, 1000
LEAST_LAG = 16


def charge(rates: int, networks: int = 1) -> int:
    """Trainings of an equation: on each network a trial for each learning rate and the training at the best one; with one
    rate that alone."""
    return networks * (rates + 1 if rates > 1 else 1)


def equations(max_evaluations: int, rates: int, networks: int = 1) -> int:
    """E: the equations that so many trainings afford, if one in CONFIRM_EVERY is confirmed. Where there is nothing to
    confirm yet there are a few more.

    >>> equations(11, rates=1), equations(33, rates=4), equations(33, rates=4, networks=2)
    (10, 6, 3)
    """
    of_each = charge(rates, networks)
    blocks, rest = divmod(max_evaluations, CONFIRM_EVERY * of_each + networks)
    return CONFIRM_EVERY * blocks + min(CONFIRM_EVERY, rest // of_each)


def epochs_of(rates: int, epochs: int, trial: int) -> int:
    """Slot-epochs of an equation that no bar stops; its training goes on where the best trial of `trial` epochs ended,
    if there is more of it."""
    return rates * trial + (max(0, epochs - trial) or epochs) if rates > 1 else epochs


def default_elite_size(equations: int) -> int:
    """N: a tenth of the equations, from 10 to the paper's 1,000.

    >>> default_elite_size(5_000), default_elite_size(60), default_elite_size(10**6)
    (500, 10, 1000)
    """
    return min(MOST_ELITE, max(LEAST_ELITE, equations // 10))


def bred(equations: int, *, elite_size: int, initial: int, lag: int) -> int:
    """How many of the equations the paper's controller breeds; the others are random, or `initial` ones.

    >>> bred(1250, elite_size=1000, initial=0, lag=16), bred(1250, elite_size=10, initial=0, lag=1024)
    (250, 226)
    """
    return max(0, equations - (initial or max(elite_size, lag)))


def busy_lag(slots: int, rates: int, epochs: int, rungs: tuple[Rung, ...]) -> int:
    """L so large that while one equation trains to its end the other slots have work, were all others to stop at the first
    rung; at least 16."""
    longest = max(4, math.ceil(epochs / rungs[0].epoch)) if rungs else 4
    return max(LEAST_LAG, math.ceil(slots * longest / rates))


def largest_lag(equations: int, *, elite_size: int, initial: int) -> int:
    """The largest L that is at most a quarter of what is bred with it; at least 1.

    >>> largest_lag(1250, elite_size=125, initial=0), largest_lag(1250, elite_size=1000, initial=0)
    (250, 62)
    """
    if initial:
        return max(1, (equations - initial) // 4)
    beyond = equations // 5  # L >= N: 4 L <= E - L
    return max(1, beyond if beyond >= elite_size else min(elite_size, (equations - elite_size) // 4))


def idle_share(slots: int, rates: int, lag: int) -> float:
    """The share of the slots that must stand idle: no more than L equations train at once.

    >>> idle_share(slots=64, rates=1, lag=16), idle_share(slots=8, rates=4, lag=16)
    (0.75, 0.0)
    """
    return max(0.0, 1 - lag * rates / slots)


def least_budget(rates: int, *, elite_size: int, initial: int, lag: int, networks: int = 1) -> int:
    """The least number of trainings that affords one equation to breed.

    >>> least_budget(rates=4, elite_size=1000, initial=0, lag=16)
    5105
    """
    unbred = initial or max(elite_size, lag)
    return (unbred + 1) * charge(rates, networks) + unbred // CONFIRM_EVERY * networks
